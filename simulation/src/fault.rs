//! The faults of a simulation.

use crate::topology::Part;

/// A fault of a machine, a link or a database server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A process is killed; its database server lives on.
    Kill(Part),
    /// A machine loses power.
    PowerCut(Part),
    /// A machine is frozen for this many milliseconds.
    Freeze(Part, u64),
    /// A database server dies.
    ServerDies(Part),
    /// A session of a database server is ended.
    SessionEnds(Part),
    /// A session of a database server is ended in the middle of its next slow COMMIT.
    CommitEnds(Part),
    /// A database server's data is gone.
    DataLost(Part),
    /// A machine is gone, and comes back with an empty disk.
    DiskLost(Part),
    /// A database server gets slow: every statement takes up to this many milliseconds.
    SlowServer(Part, u64),
    /// A machine's disk gets slow.
    SlowDisk(Part, u64),
    /// A machine's wall clock is set, off by this many milliseconds.
    ClockSet(Part, i64),
    /// A database server takes no more sessions.
    ServerFull(Part),
    /// A database server dies and cannot be started.
    StartRefused(Part),
    /// A database server's disk is full.
    DiskFull(Part),
    /// Statements are cancelled now and then.
    Cancelled(Part),
    /// Nothing gets from the first machine to the second.
    Cut(u32, u32),
    /// A link comes and goes.
    Flap(u32, u32),
    /// A machine can send to no other, or receive from no other, or both.
    Isolate(u32, bool, bool),
    /// A link gets slow.
    Slow(u32, u32),
}

impl Fault {
    /// Its kind.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Kill(_) => "processes killed",
            Fault::PowerCut(_) => "power cuts",
            Fault::Freeze(..) => "machines frozen",
            Fault::ServerDies(_) => "database servers killed",
            Fault::SessionEnds(_) => "database sessions ended",
            Fault::CommitEnds(_) => "database sessions ended in their COMMIT",
            Fault::DataLost(_) => "databases lost",
            Fault::DiskLost(_) => "disks lost",
            Fault::SlowServer(..) => "database servers slowed",
            Fault::SlowDisk(..) => "disks slowed",
            Fault::ClockSet(..) => "clocks set",
            Fault::Flap(..) => "links flapping",
            Fault::ServerFull(_) => "database servers without a free session",
            Fault::StartRefused(_) => "database servers that do not start",
            Fault::DiskFull(_) => "database servers with a full disk",
            Fault::Cancelled(_) => "database servers whose statements are cancelled",
            Fault::Cut(..) => "links cut",
            Fault::Isolate(..) => "machines cut off",
            Fault::Slow(..) => "links slowed",
        }
    }
}
