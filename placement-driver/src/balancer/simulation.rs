//! Simulation of the balancer in a closed loop: synthetic statements fall on ranges, shards report
//! their counts (smoothed, noisy, late), the balancer plans, and its decisions take effect after a
//! while. It is deterministic by seed.

use super::Balancer;
use super::testing::{codec, key, schema};
use crate::config::BalancerConfig;
use crate::state::{Action, Command, PlacementState, Proposal, Status, Transition, Work, apply};
use evenkeel_protocol::report::{RangeLoad, RangeReport, RangeState, ReplicaReport, ShardReport};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::ControlReply;
use evenkeel_protocol::{Epoch, Key, KeyInterval, KeyValue, RangeId, ShardId, TableId};
use std::collections::BTreeMap;

/// Time between two reports of a shard, in milliseconds.
const TICK_MS: u64 = 250;
/// Ticks after which a statement counts half, as in the shards' meters.
const HALF_LIFE_TICKS: f64 = 6.0;
/// How long the table lies idle before the load begins, in milliseconds: rates then ramp up as the
/// meters' averages do.
const IDLE_MS: u64 = 5_000;
/// When the simulation begins, in milliseconds of the state machine's time.
const START_MS: u64 = 1_700_000_000_000;

/// A small generator (splitmix64), so that a run is given by its seed alone.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The number that a key encodes. The start of the table is below all numbers.
fn number(key: &Key) -> i64 {
    match codec().decode(key).as_deref() {
        Ok([KeyValue::Int(n)]) => *n,
        _ => i64::MIN,
    }
}

/// The number of keys that have bytes, if any do.
pub const SIZED_KEYS: i64 = 100_000;

/// Draws keys; the second argument is the time since the start in milliseconds.
pub type Workload = Box<dyn FnMut(&mut Random, u64) -> i64>;

/// The decaying count of a shard on a range. New statements weigh more instead of old ones less:
/// see [`Simulation::scale`].
#[derive(Clone, Default)]
struct Counter {
    since_ms: u64,
    weights: BTreeMap<i64, f64>,
    observed: f64,
}

pub struct Simulation {
    pub state: PlacementState,
    pub balancer: Balancer,
    pub config: BalancerConfig,
    pub random: Random,
    pub now_ms: u64,
    pub statements_per_s: u64,
    workload: Workload,
    counters: BTreeMap<(RangeId, Epoch, ShardId), Counter>,
    /// Reports on their way, each with the time at which it arrives.
    mail: Vec<(u64, ShardReport)>,
    sequence: u64,
    /// Moves that are copying: when they end.
    due: BTreeMap<evenkeel_protocol::OperatorId, u64>,
    /// Actual statements per shard in the running second, and per second so far.
    second: BTreeMap<ShardId, u64>,
    pub imbalance: Vec<f64>,
    /// (when, range, from, to) of each move begun.
    pub moves: Vec<(u64, RangeId, ShardId, ShardId)>,
    pub splits: Vec<u64>,
    pub merges: Vec<u64>,
    /// Shards that send no reports.
    pub silent: Vec<ShardId>,
    /// A shard whose clock is ahead, and by how many milliseconds.
    pub fast: Option<(ShardId, u64)>,
    /// The term of all shards' leaders.
    pub term: u64,
    /// A shard whose ranges all carry this many statements per second by its reports.
    pub lies: Option<(ShardId, f64)>,
    pub rejections: std::sync::Arc<Vec<super::Rejection>>,
    /// Bytes of each key below [`SIZED_KEYS`]; 0 for ranges of a kilobyte each.
    pub bytes_per_key: u64,
    /// How long a move takes, in milliseconds: at least, and by how much more at most.
    pub move_ms: (u64, u64),
    /// Statements per active shard in each second.
    pub per_second: Vec<Vec<u64>>,
    stalled: Option<ShardId>,
    queued: Vec<i64>,
}

impl Simulation {
    pub fn new(shards: u32, statements_per_s: u64, seed: u64, workload: Workload) -> Simulation {
        let mut simulation = Simulation {
            state: PlacementState::default(),
            balancer: Balancer::default(),
            config: BalancerConfig::default(),
            random: Random(seed),
            now_ms: START_MS,
            statements_per_s,
            workload,
            counters: BTreeMap::new(),
            mail: Vec::new(),
            sequence: 0,
            due: BTreeMap::new(),
            second: BTreeMap::new(),
            imbalance: Vec::new(),
            moves: Vec::new(),
            splits: Vec::new(),
            merges: Vec::new(),
            silent: Vec::new(),
            lies: None,
            fast: None,
            term: 1,
            rejections: Default::default(),
            bytes_per_key: 0,
            move_ms: (600, 800),
            per_second: Vec::new(),
            stalled: None,
            queued: Vec::new(),
        };
        for id in 1..=shards {
            simulation.add_shard(id);
        }
        let schema = schema("t");
        simulation.apply(Command::CreateTable { schema, shard: Some(ShardId(1)), if_not_exists: false });
        simulation.carry_out();
        simulation.now_ms = START_MS - IDLE_MS;
        simulation.statements_per_s = 0;
        simulation.run(IDLE_MS / 1000);
        simulation.statements_per_s = statements_per_s;
        simulation.imbalance.clear();
        simulation.per_second.clear();
        simulation
    }

    pub fn add_shard(&mut self, id: u32) {
        let replicas = BTreeMap::from([(1, ([127, 0, 0, 1], 1000 + id as u16).into())]);
        self.apply(Command::AddShard(ShardInfo { id: ShardId(id), replicas }));
    }

    pub fn apply(&mut self, command: Command) {
        let since_ms = self.now_ms.saturating_sub(self.state.time_ms());
        let result =
            apply(&mut self.state, Proposal { at_ms: self.now_ms, since_ms, nonce: 0, command: command.clone() });
        assert!(result.is_ok(), "{command:?}: {result:?}");
        self.check_partition();
    }

    /// Never a gap, never an overlap.
    fn check_partition(&self) {
        for table in self.state.tables.values().filter(|table| table.creating.is_none()) {
            let parts: Vec<&KeyInterval> =
                self.state.ranges_of(table.schema.id).into_iter().map(|r| &r.route.interval).collect();
            assert!(KeyInterval::ALL.is_partitioned_by(parts));
        }
    }

    /// Runs for this many seconds of simulated time.
    pub fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 1000 / TICK_MS {
            self.tick();
        }
    }

    /// A shard serves nothing for this many seconds, and then serves its queue in one tick.
    pub fn stall(&mut self, shard: ShardId, seconds: u64) {
        self.stalled = Some(shard);
        self.run(seconds);
        self.stalled = None;
    }

    pub fn tick(&mut self) {
        self.now_ms += TICK_MS;
        self.generate();
        self.report();
        let now_ms = self.now_ms;
        let (arrived, waiting) = std::mem::take(&mut self.mail).into_iter().partition(|(at, _)| *at <= now_ms);
        self.mail = waiting;
        let arrived: Vec<(u64, ShardReport)> = arrived;
        for (_, mut report) in arrived {
            if let Some((_, figure)) = self.lies.filter(|(shard, _)| *shard == report.shard) {
                report.ranges.iter_mut().for_each(|range| range.load.reads_per_s = figure);
            }
            self.balancer.load.observe(report, &self.state, &self.config, now_ms);
        }
        self.carry_out();
        self.balancer.update(&self.state, &self.config, now_ms);
        let plan = self.balancer.plan(&self.state, &self.config, now_ms);
        if plan.exhausted {
            self.balancer.rebalancing.rest();
        }
        for question in self.balancer.size_questions(&self.state, &self.config, now_ms) {
            let answer = Ok(ControlReply::SplitKeys(self.size_keys(&question)));
            self.balancer.sizes.answered(question.range, question.epoch, answer, now_ms);
        }
        self.rejections = super::explanation(&self.rejections, &plan);
        for decision in plan.decisions {
            self.note(&decision.actions);
            self.apply(Command::Decide(Box::new(decision)));
        }
        self.carry_out();
        self.balancer.update(&self.state, &self.config, now_ms);
        if now_ms.is_multiple_of(1000) {
            self.end_second();
        }
    }

    fn note(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Split { .. } => self.splits.push(self.now_ms),
                Action::Merge { .. } => self.merges.push(self.now_ms),
                Action::Move { range, to, .. } => {
                    let held = &self.state.ranges[range];
                    let left = held.left_at_ms(*to);
                    assert!(
                        left.is_none_or(|at| at + self.config.cooldown_ms <= self.now_ms),
                        "range {range} moved back to shard {to} within its cool-down"
                    );
                    assert!(!self.silent.contains(to) && !self.silent.contains(&held.route.shard));
                    self.moves.push((self.now_ms, *range, held.route.shard, *to));
                }
            }
        }
    }

    fn end_second(&mut self) {
        let active: Vec<ShardId> = self.state.shards.values().filter(|s| !s.draining).map(|s| s.info.id).collect();
        let loads: Vec<u64> = active.iter().map(|id| self.second.get(id).copied().unwrap_or(0)).collect();
        let total: u64 = self.second.values().sum();
        let mean = total as f64 / active.len() as f64;
        self.imbalance.push(if total == 0 { 1.0 } else { loads.iter().max().copied().unwrap_or(0) as f64 / mean });
        self.per_second.push(loads);
        self.second.clear();
    }

    /// The weight of a statement now: twice as much after every half-life.
    fn scale(&self) -> f64 {
        ((self.now_ms - (START_MS - IDLE_MS)) as f64 / TICK_MS as f64 / HALF_LIFE_TICKS).exp2()
    }

    /// Statements fall on ranges.
    fn generate(&mut self) {
        let scale = self.scale();
        let ranges: Vec<(i64, (RangeId, Epoch, ShardId))> = self
            .state
            .ranges_of(TableId(1))
            .iter()
            .map(|r| (number(&r.route.interval.start), (r.route.range, r.route.epoch, r.route.shard)))
            .collect();
        for (_, id) in &ranges {
            let new = || Counter { since_ms: self.now_ms, ..Counter::default() };
            let counter = self.counters.entry(*id).or_insert_with(new);
            counter.observed += scale;
            if self.sequence.is_multiple_of(16) {
                counter.weights.retain(|_, weight| *weight > scale / 64.0);
            }
        }
        let mut drawn = if self.stalled.is_none() { std::mem::take(&mut self.queued) } else { Vec::new() };
        for _ in 0..self.statements_per_s * TICK_MS / 1000 {
            drawn.push((self.workload)(&mut self.random, self.now_ms.saturating_sub(START_MS)));
        }
        for n in drawn {
            let (_, id) = ranges[ranges.partition_point(|(start, _)| *start <= n) - 1];
            if self.stalled == Some(id.2) {
                self.queued.push(n);
                continue;
            }
            *self.second.entry(id.2).or_default() += 1;
            if let Some(counter) = self.counters.get_mut(&id) {
                *counter.weights.entry(n).or_default() += scale;
            }
        }
    }

    fn report(&mut self) {
        self.sequence += 1;
        for shard in self.state.shards.keys().copied().filter(|id| !self.silent.contains(id)) {
            let owned = self.state.ranges.values().filter(|r| r.route.shard == shard);
            let ranges = owned
                .map(|r| RangeReport {
                    id: r.route.range,
                    epoch: r.route.epoch,
                    table: r.route.table,
                    interval: r.route.interval.clone(),
                    state: RangeState::Owned,
                    load: self.load(&(r.route.range, r.route.epoch, shard)),
                })
                .collect();
            let report = ShardReport {
                clock_ms: self.now_ms + self.fast.map_or(0, |(fast, by_ms)| if fast == shard { by_ms } else { 0 }),
                highest: Default::default(),
                tables: None,
                shard,
                leader: 1,
                term: self.term,
                sequence: self.sequence,
                applied: 0,
                replicas: vec![ReplicaReport { id: 1, connected: true, decided: 0 }],
                members: None,
                capacity_per_s: None,
                ranges,
                operators: Vec::new(),
                scrub: Default::default(),
                schema: Default::default(),
            };
            let arrives_ms = self.now_ms + self.random.below(400);
            self.mail.push((arrives_ms, report));
        }
    }

    fn load(&self, id: &(RangeId, Epoch, ShardId)) -> RangeLoad {
        let Some(counter) = self.counters.get(id) else { return RangeLoad::default() };
        let scale = self.scale();
        let all: f64 = counter.weights.values().sum::<f64>().max(1e-9);
        let seconds = counter.observed * TICK_MS as f64 / 1000.0;
        let mut sketch: Vec<(Key, f64)> = Vec::new();
        let mut full = true;
        for (n, weight) in &counter.weights {
            if full {
                sketch.push((key(*n), 0.0));
            }
            if let Some((_, held)) = sketch.last_mut() {
                *held += weight / all;
                full = *held >= 1.0 / 60.0;
            }
        }
        let mut hot: Vec<(Key, f64)> = counter
            .weights
            .iter()
            .filter(|(_, weight)| **weight >= 50.0 * scale && **weight / all > 0.015)
            .map(|(n, weight)| (key(*n), weight / all))
            .collect();
        hot.sort_by(|a, b| b.1.total_cmp(&a.1));
        hot.truncate(16);
        RangeLoad {
            observed_ms: self.now_ms - counter.since_ms,
            reads_per_s: if seconds > 0.0 { all / seconds } else { 0.0 },
            bytes: if self.bytes_per_key == 0 { 1000 } else { self.bytes_of(id.0) },
            rows: 10,
            sketch,
            hot,
            ..RangeLoad::default()
        }
    }

    /// Operators end: splits at once, moves after about a second.
    fn carry_out(&mut self) {
        let running: Vec<_> = self.state.running().map(|o| (o.id, o.step, o.work.clone())).collect();
        for (operator, from, work) in running {
            let transition = match &work {
                Work::Move { epoch, .. } => {
                    let ends = self.now_ms + self.move_ms.0 + self.random.below(self.move_ms.1);
                    if *self.due.entry(operator).or_insert(ends) > self.now_ms {
                        continue;
                    }
                    Transition::Adopted { epoch: epoch.next(), pause_us: 5000, rows: 1, bytes: 1 }
                }
                _ => Transition::Applied,
            };
            let before = self.counters.clone();
            self.apply(Command::Advance { operator, from, transition });
            if let Work::Split { .. } = work {
                self.carry_counts_over(&before);
            }
            for (from, transition) in
                [(crate::state::Step::Purge, Transition::Purged), (crate::state::Step::Forget, Transition::Forgotten)]
            {
                if self.state.operators[&operator].status == Status::Running {
                    self.apply(Command::Advance { operator, from, transition });
                }
            }
        }
    }

    /// A shard that splits a range begins the meters of its pieces with the counts of the whole.
    fn carry_counts_over(&mut self, before: &BTreeMap<(RangeId, Epoch, ShardId), Counter>) {
        for range in self.state.ranges.values() {
            let id = (range.route.range, range.route.epoch, range.route.shard);
            if self.counters.contains_key(&id) {
                continue;
            }
            let (from, to) = (number(&range.route.interval.start), range.route.interval.end.as_ref().map(number));
            let mut counter = Counter { since_ms: self.now_ms, ..Counter::default() };
            for parent in before.iter().filter(|((_, _, shard), _)| *shard == id.2).map(|(_, counter)| counter) {
                for (n, weight) in parent.weights.range(from..to.unwrap_or(i64::MAX)) {
                    counter.observed = parent.observed;
                    counter.weights.insert(*n, *weight);
                }
            }
            self.counters.insert(id, counter);
        }
        let live: Vec<_> = self.state.ranges.values().map(|r| (r.route.range, r.route.epoch, r.route.shard)).collect();
        self.counters.retain(|id, _| live.contains(id));
    }

    /// The bytes of a range.
    pub fn bytes_of(&self, id: RangeId) -> u64 {
        self.state.ranges.get(&id).map_or(0, |_| self.keys_of(id, SIZED_KEYS).max(0) as u64 * self.bytes_per_key)
    }

    /// The keys of equal pieces: all keys have the same size.
    fn size_keys(&self, question: &super::SizeQuestion) -> Vec<Key> {
        let keys = self.keys_of(question.range, SIZED_KEYS);
        let first = number(&self.state.ranges[&question.range].route.interval.start).max(0);
        let pieces = i64::from(question.pieces);
        (1..pieces).map(|n| key(first + keys * n / pieces)).collect()
    }

    /// The first second from which on the imbalance stayed at or below `bound`.
    pub fn level_from(&self, bound: f64) -> usize {
        self.imbalance.iter().rposition(|imbalance| *imbalance > bound).map_or(0, |last| last + 1)
    }

    /// How many of the keys from 0 up to `n` a range holds.
    pub fn keys_of(&self, id: RangeId, n: i64) -> i64 {
        let interval = &self.state.ranges[&id].route.interval;
        let end = interval.end.as_ref().map_or(n, number);
        end.min(n) - number(&interval.start).max(0)
    }

    pub fn loads(&self) -> &BTreeMap<ShardId, f64> {
        &self.balancer.imbalance.loads
    }
}

/// Zipf's distribution over `n` items with any exponent, by its cumulative table; scrambled so that
/// hot keys are not neighbours.
pub fn zipf(n: usize, exponent: f64, scrambled: bool) -> Workload {
    let mut cumulative = Vec::with_capacity(n);
    let mut sum = 0.0;
    for rank in 1..=n {
        sum += (rank as f64).powf(-exponent);
        cumulative.push(sum);
    }
    Box::new(move |random, _| {
        let at = random.unit() * sum;
        let rank = cumulative.partition_point(|c| *c < at) as u64;
        if scrambled { (Random(rank).next() % n as u64) as i64 } else { rank as i64 }
    })
}

/// Like mixgraph: thirty key ranges of very different heat, and a power law within each.
pub fn mixgraph_like(n: u64) -> Workload {
    let heat: Vec<f64> = (0..30).map(|i| 14.18 * f64::powf(f64::from(i) + 1.0, -2.917) + 0.0164).collect();
    let total: f64 = heat.iter().sum();
    Box::new(move |random, _| {
        let mut at = random.unit() * total;
        let mut bucket = 0;
        while bucket < 29 && at > heat[bucket] {
            at -= heat[bucket];
            bucket += 1;
        }
        let within = random.unit().powf(4.0);
        let place = Random(bucket as u64 + 7).next() % 30;
        (place * (n / 30)) as i64 + (within * (n / 30) as f64) as i64
    })
}
