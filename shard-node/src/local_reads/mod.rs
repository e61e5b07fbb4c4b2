//! `local` reads: read-only statements at any replica, with a proven age (R17).
//!
//! A read is answered from this replica's PostgreSQL as it is. The module promises:
//!
//! 1. **Age.** The answer states its age: it contains every write that was acknowledged longer ago
//!    when the answer left. The age is proven by a question to the leader ([`proofs`]) whose
//!    position was applied before the snapshot was taken. A replica that is frozen or partitioned
//!    gets no new proof, so the age grows. Above the read's staleness bound the read is rejected.
//! 2. **Ownership** (R9). The state machine owns the keys before the snapshot and after it, without
//!    a change of ownership in between (`ownership`). PostgreSQL contains everything up to the
//!    last such change. Rows that are coming in, or are being purged, are therefore not visible.
//! 3. **Isolation from other work.** Admission control limits reads in flight to those that
//!    complete within a quarter of a second. Sessions are read-only. Statements that write or lock
//!    are rejected, so a read holds no lock that the apply writer waits for. A state transfer ends
//!    these sessions before it drops tables.
//!
//! A replica's PostgreSQL contains decided entries only, and these are on a quorum's disks (R28).
//!
//! Not done: transactions of several `local` reads.

mod ownership;
pub mod proofs;
mod reader;

pub use reader::{LOCAL_SCAN_SESSIONS, LocalReads};
