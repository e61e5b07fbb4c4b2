//! The endpoints of the placement driver: configured and learnt ones, and which one to ask first.

use evenkeel_protocol::api::MembersBody;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The largest number of learnt endpoints.
const MAX_LEARNT: usize = 32;

/// The endpoints, in the order in which they are asked, around.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// The number of configured endpoints. They come first: a client may reach the placement driver
    /// by other addresses than those that its replicas know.
    configured: usize,
    known: RwLock<KnownEndpoints>,
    preferred: AtomicUsize,
}

/// The endpoints, and the configuration of the placement driver's members that they belong to.
/// Members of an earlier configuration come from a replica that is behind.
#[derive(Debug)]
struct KnownEndpoints {
    configuration: u32,
    urls: Arc<[String]>,
}

impl Endpoints {
    /// The configured URLs. Number `first` is asked first, so that clients spread over them.
    pub(super) fn new(configured: &[String], first: usize) -> Endpoints {
        let urls: Vec<String> = configured.iter().map(|url| url.trim_end_matches('/').to_string()).collect();
        let preferred = AtomicUsize::new(first % urls.len().max(1));
        let known = RwLock::new(KnownEndpoints { configuration: 0, urls: urls.into() });
        Endpoints { configured: configured.len(), known, preferred }
    }

    /// The known endpoints, the configured ones first.
    pub(super) fn all(&self) -> Arc<[String]> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).urls.clone()
    }

    /// The place of the endpoint to ask first; it may be larger than the number of endpoints.
    pub(super) fn first(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// Records the place of an endpoint that has answered.
    pub(super) fn prefer(&self, place: usize) {
        self.preferred.store(place, Ordering::Relaxed);
    }

    /// Lets the next request begin at another endpoint.
    pub(super) fn pass_over(&self) {
        self.preferred.fetch_add(1, Ordering::Relaxed);
    }

    /// Replaces the learnt endpoints by those of the placement driver's replicas.
    pub(super) fn learn(&self, members: &MembersBody) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if members.epoch < known.configuration {
            return;
        }
        known.configuration = members.epoch;
        let mut next = known.urls[..self.configured].to_vec();
        // A loopback address is of use only to a client on the same machine.
        let near =
            next.iter().any(|url| url.contains("//127.") || url.contains("//localhost") || url.contains("//[::1]"));
        let reachable = |address: &SocketAddr| !address.ip().is_unspecified() && (near || !address.ip().is_loopback());
        let reported = members.members.iter().filter_map(|member| member.rest.filter(reachable));
        for url in reported.take(MAX_LEARNT).map(|address| format!("http://{address}")) {
            if !next.contains(&url) {
                next.push(url);
            }
        }
        if next[..] != known.urls[..] {
            tracing::debug!(?next, "the placement driver's replicas have changed");
            // The preferred endpoint is a place in the list: the endpoint stays preferred if it is
            // still there.
            let count = known.urls.len().max(1);
            let preferred = known.urls.get(self.first() % count);
            let place = preferred.and_then(|url| next.iter().position(|other| other == url));
            self.prefer(place.unwrap_or(0));
            known.urls = next.into();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::api::MemberBody;

    fn members(configuration: u32, addresses: &[&str]) -> MembersBody {
        let member = |(replica, address): (u64, &&str)| {
            let address = address.parse().unwrap();
            MemberBody { replica, rest: Some(address), rpc: None, log: address }
        };
        MembersBody { epoch: configuration, leader: None, members: (1..).zip(addresses).map(member).collect() }
    }

    #[test]
    fn endpoints_are_of_the_latest_configuration_and_within_reach() {
        let endpoints = Endpoints::new(&["http://10.0.0.1:1".to_string()], 0);
        endpoints.learn(&members(3, &["10.0.0.4:1", "127.0.0.1:1", "0.0.0.0:1", "10.0.0.1:1"]));
        assert_eq!(endpoints.all()[..], ["http://10.0.0.1:1", "http://10.0.0.4:1"]);
        endpoints.pass_over();
        endpoints.learn(&members(2, &["10.0.0.2:1"]));
        assert_eq!(endpoints.all()[1..], ["http://10.0.0.4:1"], "a replica that is behind says nothing new");
        endpoints.learn(&members(4, &["10.0.0.5:1", "10.0.0.4:1"]));
        assert_eq!(endpoints.all()[1..], ["http://10.0.0.5:1", "http://10.0.0.4:1"]);
        assert_eq!(endpoints.first(), 2, "the endpoint that answered last is still preferred");
        let near = Endpoints::new(&["http://127.0.0.1:1".to_string()], 0);
        near.learn(&members(1, &["127.0.0.1:2"]));
        assert_eq!(near.all().len(), 2);
    }
}
