//! The disk under a simulated replica.

pub(super) use evenkeel_host::ForgetfulDisk as SimDisk;
