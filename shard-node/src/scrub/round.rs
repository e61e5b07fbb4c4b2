//! Background rounds of a leader: over all ranges, piece by piece, at the configured pace, for as
//! long as it leads.

use super::compare::compare;
use super::pace::{Load, ScrubPace};
use super::scrubber::Scrub;
use crate::config::Config;
use crate::leader::Leader;
use crate::log_entry::Purpose;
use crate::state_machine::InPhase;
use std::time::Duration;

/// A new leader has other things to do first, for so long, in milliseconds.
const FIRST_MS: u64 = 10_000;

/// Compares round after round, from where the last leader had got to. Never returns, and does
/// nothing if the configured rate is 0.
pub async fn go_round(leader: &Leader, scrub: &Scrub, config: &Config) {
    scrub.status().begin();
    if config.scrub_bytes_per_s == 0 {
        return std::future::pending().await;
    }
    let begun = evenkeel_host::now();
    let now_ms = || evenkeel_host::elapsed(begun).as_millis() as u64;
    let mut pace = ScrubPace::new(0, config.scrub_bytes_per_s, config.scrub_pause_ms, FIRST_MS);
    loop {
        match pace.wait_ms(now_ms(), load(leader)) {
            0 => {}
            wait_ms => {
                evenkeel_host::sleep(Duration::from_millis(wait_ms)).await;
                continue;
            }
        }
        if leader.shared().log.membership().borrow().members.len() < 2 {
            // There is nothing to compare with.
            pace.failed(now_ms());
            continue;
        }
        let (began_ms, place) = (now_ms(), scrub.status().place.clone());
        match compare(scrub, leader, &place, Purpose::Scrub).await {
            Ok(found) => {
                pace.compared(began_ms, now_ms(), found.bytes);
                match found.next {
                    Some(next) => scrub.status().place = next,
                    None => {
                        scrub.status().round_ended();
                        metrics::counter!("evenkeel_scrub_rounds_total", "shard" => config.shard.to_string())
                            .increment(1);
                        pace.round_ended(now_ms());
                    }
                }
            }
            Err(failure) => {
                tracing::debug!(%failure, "replicas are not compared for the moment");
                pace.failed(now_ms());
            }
        }
    }
}

fn load(leader: &Leader) -> Load {
    let coming_in = leader.shared().state().moves_in().any(|m| m.phase == InPhase::Copying);
    match (coming_in, leader.is_busy()) {
        (true, _) => Load::ComingIn,
        (false, true) => Load::Busy,
        (false, false) => Load::Idle,
    }
}
