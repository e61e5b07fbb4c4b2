//! The randomised simulator: groups of [`Core`](crate::core::Core)s in one thread, under faults.
//!
//! A seed determines a run. There are 3 or 5 replicas, which are replaced, join and leave, and lose
//! their disks. The faults are partitions (also one-way), sessions lost with a random suffix of
//! their messages, stopped, frozen and slow processes, drifting clocks, crashes at every point of a
//! turn on a disk that loses and tears unsynced writes, compaction past live replicas, entries of
//! ended leaderships, and ineligible replicas. The load is writes, reads, state transfers, and
//! moves of the leadership. Then all faults end, and the group must recover by itself.
//!
//! The checks throughout a run: all replicas deliver the same entries with the same verdicts
//! (invariant 1); an acknowledged write is in that log; a read never misses a position that a
//! client knew before it began (log rule 9); states, also transferred ones, are results of the log
//! (invariant 3); leases hold; staleness bounds are true (R17); a write acknowledged in memory is
//! lost only with two crashes (R28). Runs with a deliberate bug show that the checks detect it.
//!
//! `EVENKEEL_SEEDS=N` runs N seeds, `EVENKEEL_SEED=S` runs one.

mod catching_up;
mod changes;
mod clocks;
mod disks_lost;
mod fault_injector;
mod options;
mod oracle;
mod run;
mod schedules;
mod seeds;
mod simulated_replica;
mod turn;
mod world;
