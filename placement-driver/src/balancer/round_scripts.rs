//! Runs the scenarios in `testscripts/`: shards, ranges and loads go in; decisions with their
//! reasons, and rejections with their codes, come out.
//!
//! | command | meaning |
//! |---|---|
//! | `shards 3` | shards 1 to 3; the table `t` has range 1 on shard 1 |
//! | `range 1 split at 100 200` | range 1 is split, its pieces stay on its shard |
//! | `range 2 on shard 2` | range 2 has moved to shard 2 |
//! | `load 900/s on keys 0..100` | statements fall evenly on these keys, replacing the former load there |
//! | `front 600/s of 100 keys moves 400 keys/s` | statements fall on a front that moves on |
//! | `rows 300 MiB on keys 0..100` | rows lie evenly on these keys |
//! | `shard 3 is silent`, `shard 3 is draining`, `shard 3 reports` | how a shard stands |
//! | `run 5 s` | shards report and rounds are planned every 250 ms; stops after the first decision |
//! | `carry out` | the operators of the decision end at once |
//! | `why` | the rejections that the REST API shows now, each with its code |
#![allow(clippy::unwrap_used)]

use super::testing::{golden_scripts, key, must, number, schema, shard};
use super::{Balancer, Rejection, RoundPlan, explanation};
use crate::config::BalancerConfig;
use crate::state::{Action, Command, NewDecision, PlacementState, Status, Step, Transition, Work};
use evenkeel_protocol::report::{RangeLoad, RangeReport, RangeState, ShardReport};
use evenkeel_protocol::shard::ControlReply;
use evenkeel_protocol::{Key, KeyInterval, RangeId, ShardId, TableId};
use std::sync::Arc;

/// Time between two reports, and between two rounds, in milliseconds.
const ROUND_MS: u64 = 250;
/// Points of a reported load profile.
const POINTS: i64 = 20;

/// Something that lies evenly on keys.
#[derive(Debug, Clone)]
struct Spread {
    from: i64,
    to: i64,
    amount: f64,
}

impl Spread {
    /// The part of it that lies on the keys of an interval.
    fn within(&self, from: i64, to: i64) -> Option<Spread> {
        let (from, to) = (self.from.max(from), self.to.min(to));
        let part = to.saturating_sub(from) as f64 / (self.to - self.from) as f64;
        (from < to).then_some(Spread { from, to, amount: self.amount * part })
    }
}

struct Rounds {
    state: PlacementState,
    balancer: Balancer,
    config: BalancerConfig,
    now_ms: u64,
    sequence: u64,
    load: Vec<Spread>,
    /// Load that moves on: statements per second, width in keys, keys per second.
    front: Option<(f64, i64, i64)>,
    rows: Vec<Spread>,
    silent: Vec<ShardId>,
    plan: RoundPlan,
    rejections: Arc<Vec<Rejection>>,
}

impl Rounds {
    fn new() -> Rounds {
        Rounds {
            state: PlacementState::default(),
            balancer: Balancer::default(),
            config: BalancerConfig::default(),
            now_ms: 0,
            sequence: 0,
            load: Vec::new(),
            front: None,
            rows: Vec::new(),
            silent: Vec::new(),
            plan: RoundPlan::default(),
            rejections: Arc::default(),
        }
    }

    fn run(&mut self, line: &str) -> Vec<String> {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["shards", count] => self.register(count.parse().unwrap()),
            ["range", range, "split", "at", ref keys @ ..] => {
                let at = keys.iter().map(|n| key(n.parse().unwrap())).collect();
                self.command(Command::Begin(Action::Split { range: range_id(range), epoch: None, at }));
                return self.carry_out();
            }
            ["range", range, "on", "shard", to] => {
                self.command(Command::Begin(Action::Move { range: range_id(range), epoch: None, to: shard_id(to) }));
                return self.carry_out();
            }
            ["load", rate, "on", "keys", keys] => {
                let rate = rate.strip_suffix("/s").unwrap().parse().unwrap();
                place(&mut self.load, keys, rate);
            }
            ["front", rate, "of", width, "keys", "moves", speed, "keys/s"] => {
                let rate = rate.strip_suffix("/s").unwrap().parse().unwrap();
                self.front = Some((rate, width.parse().unwrap(), speed.parse().unwrap()));
            }
            ["rows", mib, "MiB", "on", "keys", keys] => {
                place(&mut self.rows, keys, mib.parse::<f64>().unwrap() * f64::from(1 << 20));
            }
            ["shard", of, "is", "silent"] => self.silent.push(shard_id(of)),
            ["shard", of, "reports"] => self.silent.retain(|silent| *silent != shard_id(of)),
            ["shard", of, "is", "draining"] => self.command(Command::DrainShard(shard_id(of))),
            ["run", seconds, "s"] => return self.rounds(seconds.parse().unwrap()),
            ["carry", "out"] => {
                let decisions = std::mem::take(&mut self.plan.decisions);
                decisions.into_iter().for_each(|decision| self.command(Command::Decide(Box::new(decision))));
                return self.carry_out();
            }
            ["why"] => {
                let text = |r: &Rejection| format!("{}: {}", r.reason.code(), r.body());
                return self.rejections.iter().map(text).collect();
            }
            _ => panic!("no command: {line}"),
        }
        Vec::new()
    }

    fn command(&mut self, command: Command) {
        must(&mut self.state, self.now_ms, command);
    }

    fn register(&mut self, count: u32) {
        (1..=count).for_each(|id| self.command(Command::AddShard(shard(id))));
        self.command(Command::CreateTable { schema: schema("t"), shard: Some(ShardId(1)), if_not_exists: false });
        self.carry_out();
    }

    /// Ends every operator under way. Returns the ranges.
    fn carry_out(&mut self) -> Vec<String> {
        let running: Vec<_> = self.state.running().map(|o| (o.id, o.step, o.work.clone())).collect();
        for (operator, from, work) in running {
            let first = match work {
                Work::Move { epoch, .. } => {
                    Transition::Adopted { epoch: epoch.next(), pause_us: 4000, rows: 1, bytes: 1 }
                }
                _ => Transition::Applied,
            };
            self.command(Command::Advance { operator, from, transition: first });
            for (from, transition) in [(Step::Purge, Transition::Purged), (Step::Forget, Transition::Forgotten)] {
                if self.state.operators[&operator].status == Status::Running {
                    self.command(Command::Advance { operator, from, transition });
                }
            }
        }
        let ranges = self.state.ranges_of(TableId(1)).into_iter().map(|range| {
            let route = &range.route;
            // The sum of nothing is minus zero.
            let rate = self.parts(&self.load, &route.interval).iter().map(|part| part.amount).sum::<f64>() + 0.0;
            format!("range {} {} on shard {}, {rate:.0}/s", route.range, show_keys(&route.interval), route.shard)
        });
        ranges.collect()
    }

    /// Rounds until one decides something, or the time is over.
    fn rounds(&mut self, seconds: u64) -> Vec<String> {
        for passed_ms in (ROUND_MS..=seconds * 1000).step_by(ROUND_MS as usize) {
            self.now_ms += ROUND_MS;
            if let Some((amount, width, speed)) = self.front {
                let from = speed * self.now_ms as i64 / 1000;
                self.load = vec![Spread { from, to: from + width, amount }];
            }
            self.report();
            self.balancer.update(&self.state, &self.config, self.now_ms);
            for question in self.balancer.size_questions(&self.state, &self.config, self.now_ms) {
                let answer = Ok(ControlReply::SplitKeys(self.size_keys(question.range, question.pieces)));
                self.balancer.sizes.answered(question.range, question.epoch, answer, self.now_ms);
            }
            self.plan = self.balancer.plan(&self.state, &self.config, self.now_ms);
            if self.plan.exhausted {
                self.balancer.rebalancing.rest();
            }
            self.rejections = explanation(&self.rejections, &self.plan);
            if !self.plan.decisions.is_empty() {
                let decisions = self.plan.decisions.iter();
                return decisions.flat_map(|decision| show_decision(decision, passed_ms)).collect();
            }
        }
        vec![format!("nothing is decided in {seconds} s")]
    }

    fn report(&mut self) {
        self.sequence += 1;
        for shard in self.state.shards.keys().copied().collect::<Vec<_>>() {
            if self.silent.contains(&shard) {
                continue;
            }
            let owned = self.state.ranges.values().filter(|range| range.route.shard == shard);
            let ranges = owned.map(|range| RangeReport {
                id: range.route.range,
                epoch: range.route.epoch,
                table: TableId(1),
                interval: range.route.interval.clone(),
                state: RangeState::Owned,
                load: self.range_load(&range.route.interval),
            });
            let report = crate::operators::testing::report(shard.0, self.sequence, Vec::new());
            let report = ShardReport { ranges: ranges.collect(), ..report };
            assert!(self.balancer.load.observe(report, &self.state, &self.config, self.now_ms).taken);
        }
    }

    fn parts(&self, of: &[Spread], interval: &KeyInterval) -> Vec<Spread> {
        let (from, to) = bounds(interval);
        of.iter().filter_map(|spread| spread.within(from, to)).collect()
    }

    fn range_load(&self, interval: &KeyInterval) -> RangeLoad {
        let parts = self.parts(&self.load, interval);
        let rate: f64 = parts.iter().map(|part| part.amount).sum();
        let bytes: f64 = self.parts(&self.rows, interval).iter().map(|part| part.amount).sum();
        let mut sketch = Vec::new();
        let mut hot = Vec::new();
        for part in &parts {
            let points = POINTS.min(part.to - part.from);
            for point in 0..points {
                let at = part.from + (part.to - part.from) * point / points;
                sketch.push((key(at), part.amount / rate / points as f64));
            }
            if part.to - part.from == 1 {
                hot.push((key(part.from), part.amount / rate));
            }
        }
        RangeLoad {
            observed_ms: self.now_ms.max(10_000),
            reads_per_s: rate,
            bytes: bytes as u64,
            sketch,
            hot,
            ..RangeLoad::default()
        }
    }

    /// The keys that cut the rows of a range into equal pieces.
    fn size_keys(&self, range: RangeId, pieces: u32) -> Vec<Key> {
        let parts = self.parts(&self.rows, &self.state.ranges[&range].route.interval);
        let (from, to) = (parts[0].from, parts[0].to);
        (1..i64::from(pieces)).map(|n| key(from + (to - from) * n / i64::from(pieces))).collect()
    }
}

/// Puts an amount on keys `FROM..TO`, in the place of the former amount there.
fn place(spreads: &mut Vec<Spread>, keys: &str, amount: f64) {
    let (from, to) = keys.split_once("..").unwrap();
    let new = Spread { from: from.parse().unwrap(), to: to.parse().unwrap(), amount };
    let around = [(i64::MIN, new.from), (new.to, i64::MAX)];
    let kept = spreads.iter().flat_map(|old| around.iter().filter_map(|(from, to)| old.within(*from, *to)));
    let mut next: Vec<Spread> = kept.collect();
    next.extend((amount > 0.0).then_some(new));
    next.sort_by_key(|spread| spread.from);
    *spreads = next;
}

fn bounds(interval: &KeyInterval) -> (i64, i64) {
    let end = interval.end.as_ref().and_then(number).unwrap_or(i64::MAX);
    (number(&interval.start).unwrap_or(i64::MIN), end)
}

fn range_id(text: &str) -> RangeId {
    RangeId(text.parse().unwrap())
}

fn shard_id(text: &str) -> ShardId {
    ShardId(text.parse().unwrap())
}

fn show_keys(interval: &KeyInterval) -> String {
    let start = number(&interval.start).map_or("-∞".into(), |n| n.to_string());
    let end = interval.end.as_ref().and_then(number).map_or("∞".into(), |n| n.to_string());
    format!("[{start}, {end})")
}

fn show_decision(decision: &NewDecision, passed_ms: u64) -> Vec<String> {
    let mut out = vec![format!("after {passed_ms} ms: {}", decision.why)];
    out.extend(decision.actions.iter().map(|action| match action {
        Action::Split { range, at, .. } => {
            let at: Vec<String> = at.iter().filter_map(number).map(|n| n.to_string()).collect();
            format!("  split range {range} at {}", at.join(", "))
        }
        Action::Merge { left, right } => format!("  merge ranges {} and {}", left.0, right.0),
        Action::Move { range, to, .. } => format!("  move range {range} to shard {to}"),
    }));
    out.extend(decision.alternatives.iter().map(|alternative| format!("  not: {alternative}")));
    out.push(format!("  imbalance {:.2}, then {:.2}", decision.imbalance_before, decision.imbalance_expected));
    out
}

#[test]
fn rounds_decide_what_the_scenarios_say() {
    golden_scripts("src/balancer/testscripts", Rounds::new, Rounds::run);
}
