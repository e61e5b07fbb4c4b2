//! The progress of a run on standard output. A terminal shows one bar per shard, the time, and the
//! running operators. Any other output receives one line per second and one line per event.

use crate::display::bytes;
use evenkeel_local_cluster::operator_text::{describe, is_running};
use evenkeel_local_cluster::run::observation::Observation;
use evenkeel_local_cluster::run::{ProgressListener, TaskProgress};
use evenkeel_protocol::api::{OperatorBody, OperatorKind};
use evenkeel_workloads::replay::SecondSummary;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The number of operators shown at once.
const SHOWN_OPERATORS: usize = 8;

/// Shows the progress of a run. Clones are cheap and share the display.
#[derive(Debug, Clone)]
pub struct Screen {
    state: Arc<Mutex<ScreenState>>,
    bars: Option<MultiProgress>,
}

#[derive(Debug, Default)]
struct ScreenState {
    started: Option<Instant>,
    duration_s: u64,
    /// The suffix of a throughput: the rate limit of every shard, or nothing.
    limit: String,
    ranges_by_shard: BTreeMap<u32, usize>,
    moving: usize,
    display: LoadBars,
}

/// The bars shown during the load, created when first needed.
#[derive(Debug, Default)]
struct LoadBars {
    time: Option<ProgressBar>,
    shards: BTreeMap<u32, ProgressBar>,
    operators: Option<ProgressBar>,
}

/// One task with a known number of steps.
#[derive(Debug, Clone)]
struct ScreenTask {
    bar: Option<ProgressBar>,
    screen: Screen,
    what: String,
    total: u64,
    started: Instant,
}

impl Screen {
    /// Bars if standard output is a terminal, lines otherwise.
    pub fn new() -> Screen {
        let bars = std::io::stdout().is_terminal().then(MultiProgress::new);
        Screen { state: Arc::default(), bars }
    }

    fn lock(&self) -> MutexGuard<'_, ScreenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProgressListener for Screen {
    fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => {
                if bars.println(text).is_err() {
                    say(text);
                }
            }
            None => say(text),
        }
    }

    fn task(&self, what: &str, total: u64) -> Arc<dyn TaskProgress> {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(total));
            bar.set_style(style("{msg:28} {bar:40} {pos}/{len}"));
            bar.set_message(what.to_string());
            bar
        });
        Arc::new(ScreenTask { bar, screen: self.clone(), what: what.to_string(), total, started: evenkeel_host::now() })
    }

    fn load_starts(&self, duration_s: f64, limit: Option<u64>) {
        let mut state = self.lock();
        state.limit = limit.map_or_else(String::new, |limit| format!(" (limited to {limit}/s each)"));
        state.started = Some(evenkeel_host::now());
        state.duration_s = duration_s.ceil() as u64;
    }

    /// Removes the bars; lines stay.
    fn load_ended(&self) {
        let bars = std::mem::take(&mut self.lock().display);
        for bar in bars.shards.into_values().chain(bars.time).chain(bars.operators) {
            bar.finish_and_clear();
        }
    }

    fn second(&self, summary: &SecondSummary) {
        let mut state = self.lock();
        if let Some(bars) = &self.bars {
            draw_second(bars, &mut state, summary);
            return;
        }
        let per_shard: Vec<String> = summary.per_shard.iter().map(|(shard, n)| format!("{shard}:{n}")).collect();
        let ranges: usize = state.ranges_by_shard.values().sum();
        let failed = if summary.failed > 0 { format!(", {} FAILED", summary.failed) } else { String::new() };
        say(&format!(
            "{:>4} s  {:>6}/s on shards {:<28} imbalance {}  ranges {ranges:<3} moving {}  p50 {} p99 {} ms{failed}",
            summary.second + 1,
            summary.ok,
            per_shard.join(" ") + &state.limit,
            summary.imbalance.map_or_else(|| "-".into(), |i| format!("{i:.2}")),
            state.moving,
            ms(summary.p50_ms),
            ms(summary.p99_ms),
        ));
    }

    fn observed(&self, seen: &Observation) {
        let mut state = self.lock();
        state.ranges_by_shard.clear();
        for range in &seen.ranges {
            *state.ranges_by_shard.entry(range.route.shard.0).or_default() += 1;
        }
        state.moving = seen.running.iter().filter(|o| matches!(o.kind, OperatorKind::Move { .. })).count();
        let Some(bars) = &self.bars else {
            return;
        };
        if state.display.time.is_none() {
            return;
        }
        let running = seen.running.iter().take(SHOWN_OPERATORS).map(|o| {
            format!("  {}: {} {}", describe(&o.kind), o.step, if o.bytes > 0 { bytes(o.bytes) } else { String::new() })
        });
        let text = running.collect::<Vec<_>>().join("\n");
        let bar = state.display.operators.get_or_insert_with(|| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(style("{msg}"));
            bar
        });
        bar.set_message(text);
    }

    fn operator(&self, before: Option<&OperatorBody>, now: &OperatorBody) {
        let at = self
            .lock()
            .started
            .map_or_else(String::new, |s| format!("{:>6.1} s  ", evenkeel_host::elapsed(s).as_secs_f64()));
        let ended = !is_running(now) && before.is_none_or(is_running);
        if ended {
            let moved = match (&now.kind, now.status.as_str()) {
                (OperatorKind::Move { .. }, "done") => format!(
                    ": {} rows, {}, writes paused {} ms",
                    now.rows,
                    bytes(now.bytes),
                    ms(now.pause_us.map(|us| us as f64 / 1000.0))
                ),
                (_, "done") => String::new(),
                (_, status) => format!(": {status} {}", now.detail.as_deref().unwrap_or_default()),
            };
            self.line(&format!("{at}{}{moved}", describe(&now.kind)));
        }
    }
}

impl Default for Screen {
    fn default() -> Self {
        Screen::new()
    }
}

impl TaskProgress for ScreenTask {
    fn set(&self, steps: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(steps);
        }
    }

    fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = evenkeel_host::elapsed(self.started).as_secs_f64();
        self.screen.line(&format!("{}: {} in {seconds:.1} s", self.what, self.total));
    }
}

fn draw_second(bars: &MultiProgress, state: &mut ScreenState, summary: &SecondSummary) {
    let (duration, limit) = (state.duration_s, state.limit.clone());
    let time = state.display.time.get_or_insert_with(|| {
        let bar = bars.add(ProgressBar::new(duration));
        bar.set_style(style("{pos:>4}/{len} s {bar:40} {msg}"));
        bar
    });
    time.set_position(summary.second + 1);
    time.set_message(format!(
        "{}/s{}  imbalance {}  p50 {} p99 {} ms  failed {}",
        summary.ok,
        if state.limit.is_empty() { "" } else { " on shards with a limit" },
        summary.imbalance.map_or_else(|| "-".into(), |i| format!("{i:.2}")),
        ms(summary.p50_ms),
        ms(summary.p99_ms),
        summary.failed
    ));
    let shards: Vec<u32> = (1..=summary.shards).chain(summary.per_shard.keys().copied()).collect();
    for shard in shards {
        let load = summary.per_shard.get(&shard).copied().unwrap_or(0);
        let ranges = state.ranges_by_shard.get(&shard).copied().unwrap_or(0);
        let bar = state.display.shards.entry(shard).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(1));
            bar.set_style(style("  {prefix:8} {bar:40} {msg}"));
            bar.set_prefix(format!("shard {shard}"));
            bar
        });
        bar.set_length(summary.ok.max(1));
        bar.set_position(load);
        bar.set_message(format!("{load}/s{limit}, {ranges} ranges"));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("█▌ ")
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |v| if v < 10.0 { format!("{v:.1}") } else { format!("{v:.0}") })
}

/// Writes one line to standard output. A closed output does not stop the run.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        tracing::debug!("standard output is closed");
    }
}

/// Shows a spinner during work of unknown length. Returns its result and its duration.
pub async fn while_waiting<T>(screen: &Screen, what: &str, work: impl Future<Output = T>) -> (T, Duration) {
    let started = evenkeel_host::now();
    let bar = screen.bars.as_ref().map(|bars| {
        let bar = bars.add(ProgressBar::new_spinner());
        bar.set_style(style("{spinner} {msg} {elapsed}"));
        bar.set_message(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    });
    if bar.is_none() {
        screen.line(what);
    }
    let done = work.await;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    (done, evenkeel_host::elapsed(started))
}
