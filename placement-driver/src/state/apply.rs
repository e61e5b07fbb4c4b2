//! Applying commands.

use super::*;
use evenkeel_protocol::Epoch;
use evenkeel_protocol::KeyInterval;
use evenkeel_protocol::key::Key;
use evenkeel_protocol::report::ShardMembers;
use evenkeel_protocol::value::{interval_text, key_text};

impl State {
    /// Applies one proposal. After a refusal only time has passed.
    pub fn apply(&mut self, proposal: Proposal) -> Result<Effect, Refusal> {
        self.time_ms = self.time_ms.saturating_add(proposal.since_ms);
        let now = Moment { at_ms: proposal.at_ms, time_ms: self.time_ms };
        let mut change = Change::default();
        let effect = match proposal.command {
            Command::AddShard(info) => self.add_shard(info, &mut change),
            Command::DrainShard(id) => self.drain_shard(id),
            Command::RemoveShard(id) => self.remove_shard(id, &mut change),
            Command::CreateTable { schema, shard, if_not_exists } => {
                self.create_table(schema, shard, if_not_exists, now)
            }
            Command::Begin(action) => self.begin(action, None, now).map(|id| Effect::Begun(vec![id])),
            Command::Decide(decision) => self.decide(*decision, now),
            Command::Advance { operator, from, transition } => {
                self.advance(operator, from, transition, now, &mut change)
            }
            Command::Cancel(id) => self.cancel(id, now, &mut change),
            Command::TakeBack(id) => self.take_back(id, now),
            Command::TakeRoutes(routes) => self.take_routes(&routes, now, &mut change).map(|()| Effect::Applied),
            Command::SetBalancer { enabled } => Ok(self.set_balancer(enabled)),
            Command::BeginIncarnation(generation) => Ok(self.begin_incarnation(generation)),
            Command::NameCluster(cluster) => Ok(self.name_cluster(cluster)),
            Command::Reconciled(found) => self.reconciled(&found, now, &mut change),
            Command::TakeTables { tables, routes } => self.take_tables(&tables, &routes, now, &mut change),
            Command::TakeMembers { shard, members } => self.take_members(shard, members, &mut change),
            Command::UndrainShard(id) => self.undrain_shard(id, now),
            Command::Kv(request) => self.kv.apply(*request, self.time_ms).map(Effect::Kv).map_err(Refusal::Kv),
        }?;
        if !change.is_empty() {
            self.version.number += 1;
            change.number = self.version.number;
            self.changes.push(change);
        }
        Ok(effect)
    }

    fn add_shard(&mut self, info: ShardInfo, change: &mut Change) -> Result<Effect, Refusal> {
        if info.replicas.is_empty() || info.replicas.len() > MAX_REPLICAS {
            let found = info.replicas.len();
            return Err(Refusal::TooMany(format!("a shard has 1 to {MAX_REPLICAS} replicas, {found} given")));
        }
        if self.shards.len() >= MAX_SHARDS && !self.shards.contains_key(&info.id) {
            return Err(Refusal::TooMany(format!("there are {MAX_SHARDS} shards already")));
        }
        // What the shard itself has told of its replicas is later than what anybody else says.
        let known = self.shards.get(&info.id).filter(|known| known.epoch > 0);
        let (info, epoch) = known.map_or((info, 0), |known| (known.info.clone(), known.epoch));
        // Whoever registers the shards at every start must not undo what somebody else has decided.
        let draining = self.shards.get(&info.id).is_some_and(|known| known.draining);
        if self.shards.get(&info.id).is_some_and(|known| known.lost) {
            return Err(Refusal::Lost(info.id));
        }
        let shard = Shard { info, epoch, draining, lost: false };
        if self.shards.get(&shard.info.id) == Some(&shard) {
            return Ok(Effect::Unchanged);
        }
        change.shards.insert(shard.info.id);
        self.shards.insert(shard.info.id, shard);
        Ok(Effect::Applied)
    }

    fn take_members(&mut self, id: ShardId, members: ShardMembers, change: &mut Change) -> Result<Effect, Refusal> {
        let found = members.replicas.len();
        if found == 0 || found > MAX_REPLICAS {
            return Err(Refusal::TooMany(format!("a shard has 1 to {MAX_REPLICAS} replicas, {found} told")));
        }
        let shard = self.shards.get_mut(&id).ok_or(Refusal::UnknownShard(id))?;
        if members.epoch <= shard.epoch {
            return Ok(Effect::Unchanged);
        }
        shard.epoch = members.epoch;
        shard.info.replicas = members.replicas;
        change.shards.insert(id);
        Ok(Effect::Applied)
    }

    fn drain_shard(&mut self, id: ShardId) -> Result<Effect, Refusal> {
        let active = self.shards.values().filter(|shard| !shard.draining).count();
        let shard = self.shards.get_mut(&id).ok_or(Refusal::UnknownShard(id))?;
        if shard.draining {
            return Ok(Effect::Unchanged);
        }
        if active <= 1 {
            return Err(Refusal::LastShard(id));
        }
        shard.draining = true;
        Ok(Effect::Applied)
    }

    fn undrain_shard(&mut self, id: ShardId, now: Moment) -> Result<Effect, Refusal> {
        let shard = self.shards.get_mut(&id).ok_or(Refusal::UnknownShard(id))?;
        if !std::mem::take(&mut shard.draining) {
            return Err(Refusal::NotDraining(id));
        }
        // What was to leave may stay. What a person has asked to move is moved all the same.
        let leaves = |o: &Operator| matches!(o.work, Work::Move { from, .. } if from == id) && o.decision.is_some();
        for operator in self.operators.values_mut().filter(|o| leaves(o) && o.cancellable()) {
            operator.detail = Some(format!("shard {id} is no longer being drained"));
            operator.enter(Step::Cancel, Status::Cancelling, now);
        }
        Ok(Effect::Applied)
    }

    fn remove_shard(&mut self, id: ShardId, change: &mut Change) -> Result<Effect, Refusal> {
        let shard = self.shards.get(&id).ok_or(Refusal::UnknownShard(id))?;
        if !shard.draining || !self.is_empty(id) {
            return Err(Refusal::NotEmpty(id));
        }
        self.shards.remove(&id);
        change.removed_shards.insert(id);
        Ok(Effect::Applied)
    }

    fn active_shard(&self, id: ShardId) -> Result<&Shard, Refusal> {
        let shard = self.shards.get(&id).ok_or(Refusal::UnknownShard(id))?;
        match (shard.lost, shard.draining) {
            (true, _) => Err(Refusal::Lost(id)),
            (_, true) => Err(Refusal::Draining(id)),
            _ => Ok(shard),
        }
    }

    fn create_table(
        &mut self,
        schema: TableSchema,
        shard: Option<ShardId>,
        if_not_exists: bool,
        now: Moment,
    ) -> Result<Effect, Refusal> {
        self.may_allocate()?;
        if let Some(table) = self.table_named(&schema.name) {
            return match (table.creating, if_not_exists) {
                (_, false) => Err(Refusal::TableExists(schema.name)),
                (Some(operator), true) => Ok(Effect::Begun(vec![operator])),
                (None, true) => Ok(Effect::TableReady(table.schema.id)),
            };
        }
        check_schema(&schema)?;
        if self.tables.len() >= MAX_TABLES {
            return Err(Refusal::TooMany(format!("there are {MAX_TABLES} tables already")));
        }
        let counts = self.range_counts();
        let active = || self.shards.iter().filter(|(_, shard)| !shard.draining && !shard.lost).map(|(id, _)| *id);
        let shard = match shard {
            Some(id) => self.active_shard(id)?.info.id,
            None => active()
                .min_by_key(|id| (counts.get(id).copied().unwrap_or(0), *id))
                .ok_or_else(|| Refusal::TooMany("there is no shard yet".into()))?,
        };
        let table = self.next_table;
        let work = Work::CreateTable { table, range: self.next_range, shard };
        self.next_table.0 += 1;
        self.next_range.0 += 1;
        let operator = self.start(work, table, None, now);
        let schema = Arc::new(TableSchema { id: table, ..schema });
        self.tables.insert(table, Table { schema, creating: Some(operator) });
        Ok(Effect::Begun(vec![operator]))
    }

    fn may_allocate(&self) -> Result<(), Refusal> {
        // R30: after a restoration ids could collide with ones that the backup has never heard of.
        if self.restoring {
            return Err(Refusal::Restoring);
        }
        if self.running().count() >= MAX_RUNNING {
            return Err(Refusal::TooMany(format!("{MAX_RUNNING} operators are under way already")));
        }
        Ok(())
    }

    /// Takes the next operator number (R20) and locks the ranges.
    fn start(&mut self, work: Work, table: TableId, decision: Option<u64>, now: Moment) -> OperatorId {
        let id = self.next_operator;
        self.next_operator.0 += 1;
        for range in work.ranges() {
            if let Some(range) = self.ranges.get_mut(&range) {
                range.operator = Some(id);
            }
        }
        self.operators.insert(id, Operator::new(id, work, table, decision, now));
        id
    }

    /// The range, if nothing works on it and it is what the caller thought it was.
    fn free(&self, id: RangeId, epoch: Option<Epoch>) -> Result<&Range, Refusal> {
        let range = self.ranges.get(&id).ok_or(Refusal::UnknownRange(id))?;
        if let Some(operator) = range.operator {
            return Err(Refusal::RangeBusy { range: id, operator });
        }
        match epoch {
            Some(expected) if expected != range.route.epoch => {
                Err(Refusal::WrongEpoch { range: id, found: range.route.epoch, expected })
            }
            _ => Ok(range),
        }
    }

    fn begin(&mut self, action: Action, decision: Option<u64>, now: Moment) -> Result<OperatorId, Refusal> {
        self.may_allocate()?;
        let (work, table) = match action {
            Action::Split { range, epoch, at } => {
                let Range { route, .. } = self.free(range, epoch)?;
                let schema = self.tables.get(&route.table).map(|table| table.schema.as_ref());
                check_split(&route.interval, &at, schema)?;
                if self.ranges.len() + at.len() > MAX_RANGES {
                    return Err(Refusal::TooMany(format!("there would be more than {MAX_RANGES} ranges")));
                }
                let (table, shard, epoch) = (route.table, route.shard, route.epoch);
                let first = self.next_range.0;
                self.next_range.0 += at.len() as u64;
                let at = at.into_iter().zip(first..).map(|(key, id)| (key, RangeId(id))).collect();
                (Work::Split { range, epoch, shard, at }, table)
            }
            Action::Merge { left, right } => {
                let (a, b) = (&self.free(left.0, Some(left.1))?.route, &self.free(right.0, Some(right.1))?.route);
                if a.table != b.table || a.shard != b.shard || a.interval.join(&b.interval).is_none() {
                    return Err(Refusal::NotNeighbours(left.0, right.0));
                }
                (Work::Merge { left, right, shard: a.shard }, a.table)
            }
            Action::Move { range, epoch, to } => {
                let Range { route, .. } = self.free(range, epoch)?;
                if route.shard == to {
                    return Err(Refusal::SameShard { range, shard: to });
                }
                self.active_shard(to)?;
                (Work::Move { range, epoch: route.epoch, from: route.shard, to }, route.table)
            }
        };
        Ok(self.start(work, table, decision, now))
    }

    fn decide(&mut self, decided: NewDecision, now: Moment) -> Result<Effect, Refusal> {
        let id = self.next_decision;
        let mut operators = Vec::new();
        let mut refusals = Vec::new();
        for action in decided.actions.clone() {
            match self.begin(action, Some(id), now) {
                Ok(operator) => operators.push(operator),
                Err(refusal) => refusals.push(refusal.to_string()),
            }
        }
        if operators.is_empty() {
            return Err(Refusal::NothingLeft(refusals.join("; ")));
        }
        self.next_decision += 1;
        if self.decisions.len() >= MAX_DECISIONS {
            self.decisions.pop_front();
        }
        self.decisions.push_back(Decision {
            id,
            at_ms: now.at_ms,
            time_ms: now.time_ms,
            decided,
            operators: operators.clone(),
            outcome: None,
        });
        Ok(Effect::Begun(operators))
    }

    fn cancel(&mut self, id: OperatorId, now: Moment, change: &mut Change) -> Result<Effect, Refusal> {
        let operator = self.operators.get_mut(&id).ok_or(Refusal::UnknownOperator(id))?;
        if operator.status == Status::Cancelling {
            return Ok(Effect::Unchanged);
        }
        if operator.status.is_over() {
            return Err(Refusal::AlreadyOver { operator: id, status: operator.status.name() });
        }
        // A table that is waited for, at a shard which owns nothing and so may not even be there, is given up. Should it be there after
        // all, the table that it has made, and nobody knows, is dropped.
        let creation = match operator.work {
            Work::CreateTable { shard, .. } if operator.step == Step::Apply => {
                (!self.ranges.values().any(|range| range.route.shard == shard)).then_some(shard)
            }
            _ => None,
        };
        if let Some(shard) = creation {
            operator.detail = Some(format!("cancelled before shard {shard} had answered"));
            operator.enter(Step::End, Status::Cancelled, now);
            self.finish(id, now, change);
        } else if operator.cancellable() {
            operator.enter(Step::Cancel, Status::Cancelling, now);
        } else {
            let step = operator.step.name();
            return Err(Refusal::NotCancellable { operator: id, step });
        }
        Ok(Effect::Applied)
    }

    /// R23: the destination is lost for good, by somebody's word. From here on nothing that comes from it is believed.
    fn take_back(&mut self, id: OperatorId, now: Moment) -> Result<Effect, Refusal> {
        let operator = self.operators.get_mut(&id).ok_or(Refusal::UnknownOperator(id))?;
        let Work::Move { to, .. } = operator.work else {
            return Err(Refusal::NotFenced { operator: id, step: operator.shown_step() });
        };
        if operator.destination_lost && operator.step == Step::Restore {
            return Ok(Effect::Unchanged);
        }
        if !matches!(operator.step, Step::Copy | Step::Switch) || operator.status != Status::Running {
            return Err(Refusal::NotFenced { operator: id, step: operator.shown_step() });
        }
        operator.destination_lost = true;
        operator.detail = Some(format!("shard {to} was declared lost; the source takes the range back"));
        operator.enter(Step::Restore, Status::Running, now);
        if let Some(shard) = self.shards.get_mut(&to) {
            shard.lost = true;
        }
        Ok(Effect::Applied)
    }

    fn advance(
        &mut self,
        id: OperatorId,
        from: Step,
        transition: Transition,
        now: Moment,
        change: &mut Change,
    ) -> Result<Effect, Refusal> {
        let operator = self.operators.get(&id).ok_or(Refusal::UnknownOperator(id))?;
        if operator.step != from || !transition.sources().contains(&from) {
            return Err(Refusal::OtherStep { operator: id, found: operator.shown_step() });
        }
        let routes = self.routes_after(operator, &transition);
        let status = transition.status(operator);
        self.replace(&routes, now, change)?;
        let Some(operator) = self.operators.get_mut(&id) else {
            return Err(Refusal::UnknownOperator(id));
        };
        note(operator, &transition);
        operator.enter(transition.target(), status, now);
        if status.is_over() {
            self.finish(id, now, change);
        } else if transition.releases() {
            self.release(id, now);
        }
        Ok(Effect::Applied)
    }

    /// The routes that a transition publishes. None for a range that has gone on without the operator: it was restored from an old copy, and what
    /// the shards have told since is later (R30).
    fn routes_after(&self, operator: &Operator, transition: &Transition) -> Vec<Route> {
        let at = operator.work.epochs();
        let route = |id: &RangeId| {
            let route = self.ranges.get(id).map(|range| &range.route);
            route.filter(|route| at.iter().any(|(range, epoch)| (range, epoch) == (id, &route.epoch))).cloned()
        };
        match (transition, &operator.work) {
            (Transition::Applied, Work::CreateTable { table, range, shard }) => {
                if self.ranges.values().any(|range| range.route.table == *table) {
                    return Vec::new();
                }
                let interval = KeyInterval::ALL;
                vec![Route { range: *range, epoch: Epoch(1), table: *table, interval, shard: *shard }]
            }
            (Transition::Applied, Work::Split { range, epoch, at, .. }) => {
                let keys: Vec<Key> = at.iter().map(|(key, _)| key.clone()).collect();
                let Some(old) = route(range) else { return Vec::new() };
                let pieces = old.interval.split(&keys).unwrap_or_default();
                let ids = std::iter::once(*range).chain(at.iter().map(|(_, id)| *id));
                let piece = |(interval, range)| Route { range, interval, epoch: epoch.next(), ..old.clone() };
                pieces.into_iter().zip(ids).map(piece).collect()
            }
            (Transition::Applied, Work::Merge { left, right, .. }) => {
                let (Some(a), Some(b)) = (route(&left.0), route(&right.0)) else { return Vec::new() };
                let epoch = left.1.max(right.1).next();
                let join = |interval| Route { interval, epoch, ..a.clone() };
                a.interval.join(&b.interval).map(join).into_iter().collect()
            }
            (Transition::Adopted { epoch, .. }, Work::Move { range, to, .. }) => {
                route(range).map(|old| Route { epoch: *epoch, shard: *to, ..old }).into_iter().collect()
            }
            (Transition::TakenBack { epoch }, Work::Move { range, .. }) => {
                route(range).map(|old| Route { epoch: *epoch, ..old }).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Unlocks the ranges that an operator still holds: the next one may begin on them. Notes whether it was in vain.
    fn release(&mut self, id: OperatorId, now: Moment) {
        let Some(operator) = self.operators.get(&id) else { return };
        let in_vain = operator.is_in_vain();
        let asked = !operator.given_up && operator.status != Status::Failed;
        for range in self.ranges.values_mut().filter(|range| range.operator == Some(id)) {
            range.operator = None;
            // Somebody's wish says nothing about whether it would have worked.
            let times = if asked { range.failures.times.max(1) } else { range.failures.times.saturating_add(1) };
            range.failures = if in_vain { Failures { times, last_ms: now.time_ms } } else { Failures::default() };
        }
    }

    /// Unlocks the ranges, settles the table that was being created, notes the decision's outcome, forgets what is too old.
    fn finish(&mut self, id: OperatorId, now: Moment, change: &mut Change) {
        self.release(id, now);
        let Some(operator) = self.operators.get(&id) else { return };
        if let Work::CreateTable { table, .. } = operator.work {
            if operator.status == Status::Done {
                if let Some(table) = self.tables.get_mut(&table) {
                    table.creating = None;
                }
                change.tables.insert(table);
            } else {
                self.tables.remove(&table);
                self.given_up.insert(table, id);
                if self.given_up.len() > MAX_GIVEN_UP {
                    self.given_up.pop_first();
                }
            }
        }
        if let Some(decision) = operator.decision {
            self.note_outcome(decision);
        }
        let ended: Vec<OperatorId> =
            self.operators.values().filter(|operator| operator.status.is_over()).map(|operator| operator.id).collect();
        for id in &ended[..ended.len().saturating_sub(MAX_ENDED)] {
            self.operators.remove(id);
        }
    }

    fn note_outcome(&mut self, id: u64) {
        let Some(decision) = self.decisions.iter_mut().find(|decision| decision.id == id) else { return };
        let operators: Vec<&Operator> = decision.operators.iter().filter_map(|id| self.operators.get(id)).collect();
        if operators.iter().any(|operator| !operator.status.is_over()) {
            return;
        }
        let count = |status| operators.iter().filter(|operator| operator.status == status).count();
        let ended_ms = operators.iter().map(|operator| operator.step_since_ms).max().unwrap_or(0);
        let took_ms = ended_ms.saturating_sub(decision.time_ms);
        let mut outcome = format!("{} of {} done after {took_ms} ms", count(Status::Done), decision.operators.len());
        for status in [Status::Cancelled, Status::Failed, Status::Differs] {
            if count(status) > 0 {
                outcome.push_str(&format!(", {} {}", count(status), status.name()));
            }
        }
        let bytes: u64 = operators.iter().map(|operator| operator.bytes).sum();
        if bytes > 0 {
            let pause = operators.iter().filter_map(|operator| operator.pause_us).max().unwrap_or(0);
            outcome.push_str(&format!("; {bytes} bytes moved, longest pause {pause} µs"));
        }
        decision.outcome = Some(outcome);
    }

    /// Takes in later routes, unless an operator is at work there: it will bring them itself.
    fn take_routes(&mut self, routes: &[Route], now: Moment, change: &mut Change) -> Result<(), Refusal> {
        for range in self.ranges.values() {
            let touches = |route: &Route| {
                route.table == range.route.table
                    && (route.range == range.route.range || route.interval.overlaps(&range.route.interval))
            };
            if let Some(operator) = range.operator.filter(|_| routes.iter().any(touches)) {
                return Err(Refusal::RangeBusy { range: range.route.range, operator });
            }
        }
        if let Some(route) = routes.iter().find(|route| route.range >= self.next_range) {
            return Err(Refusal::UnknownRange(route.range));
        }
        self.replace_by_table(routes, now, change)
    }

    pub(super) fn replace_by_table(
        &mut self,
        routes: &[Route],
        now: Moment,
        change: &mut Change,
    ) -> Result<(), Refusal> {
        let mut by_table: BTreeMap<TableId, Vec<Route>> = BTreeMap::new();
        for route in routes {
            if !self.tables.contains_key(&route.table) {
                return Err(Refusal::UnknownTable(route.table));
            }
            by_table.entry(route.table).or_default().push(route.clone());
        }
        // Refused as a whole: one table's routes must not stay when another's are wrong.
        let before = (by_table.len() > 1).then(|| self.ranges.clone());
        for routes in by_table.values() {
            if let Err(refusal) = self.replace(routes, now, change) {
                if let Some(before) = before {
                    self.ranges = before;
                }
                return Err(refusal);
            }
        }
        Ok(())
    }

    fn set_balancer(&mut self, enabled: bool) -> Effect {
        if self.balancer_enabled.replace(enabled) == Some(enabled) { Effect::Unchanged } else { Effect::Applied }
    }
}

/// Keeps what a transition tells about the operator.
fn note(operator: &mut Operator, transition: &Transition) {
    match transition {
        Transition::Adopted { pause_us, rows, bytes, .. } => {
            operator.pause_us = Some(*pause_us);
            operator.rows = *rows;
            operator.bytes = *bytes;
        }
        Transition::Refused { reason } | Transition::NotTakenBack { reason } => operator.detail = Some(reason.clone()),
        Transition::GiveUp { reason } => {
            operator.given_up = true;
            operator.detail = Some(reason.clone());
        }
        Transition::Declined => {
            operator.detail = Some("the destination declined; the source takes the range back".into());
        }
        Transition::Overtaken => {
            let detail =
                "it was under way in the copy that the placement driver was restored from, and has ended since";
            operator.detail = Some(detail.into());
        }
        Transition::Differs { detail } => {
            (operator.given_up, operator.differs) = (true, true);
            operator.detail = Some(format!("what was stored differs from what was sent: {detail}"));
        }
        _ => {}
    }
}

/// What the state itself relies on in a table. That the definition is this very table is made sure of before it is proposed (R6).
pub(crate) fn check_schema(schema: &TableSchema) -> Result<(), Refusal> {
    let invalid = |reason: &str| Err(Refusal::InvalidTable(format!("table {:?}: {reason}", schema.name)));
    if schema.name.is_empty() || schema.name.len() > 63 {
        return invalid("a name has 1 to 63 bytes");
    }
    if schema.columns.is_empty() || schema.columns.len() > evenkeel_protocol::schema::MAX_COLUMNS {
        return invalid("it has no columns, or too many");
    }
    let mut columns = std::collections::BTreeSet::new();
    if !schema.columns.iter().all(|column| columns.insert(&column.name)) {
        return invalid("a column is named twice");
    }
    let mut key = std::collections::BTreeSet::new();
    if schema.key.is_empty() || !schema.key.iter().all(|&i| i < schema.columns.len() && key.insert(i)) {
        return invalid("it needs a primary key made of its columns");
    }
    if schema.key_types().len() != schema.key.len() {
        return invalid("key columns are smallint, integer, bigint, text, uuid, bytea or timestamptz");
    }
    Ok(())
}

fn check_split(interval: &KeyInterval, at: &[Key], schema: Option<&TableSchema>) -> Result<(), Refusal> {
    if at.is_empty() || at.len() >= MAX_PIECES {
        return Err(Refusal::BadSplit(format!("a split is at 1 to {} keys, {} given", MAX_PIECES - 1, at.len())));
    }
    if let Some(key) = at.iter().find(|key| !interval.splits_at(key)) {
        // In the words of whoever asked: what they gave, and what `GET /v1/ranges` shows.
        let (key, interval) = match schema.map(TableSchema::codec) {
            Some(codec) => (key_text(&codec, key), interval_text(&codec, interval)),
            None => (key.to_hex(), interval.to_string()),
        };
        return Err(Refusal::BadSplit(format!("{key} is not strictly inside {interval}")));
    }
    if interval.split(at).is_none() {
        return Err(Refusal::BadSplit("the keys to split at must grow strictly".into()));
    }
    Ok(())
}
