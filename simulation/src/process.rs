//! Clocks and randomness of the process, which make a run deterministic.
//!
//! The standard library and tokio call the C functions `clock_gettime` and `getrandom`. This module
//! defines both and so replaces those of the C library in the whole program: before [`begin`] they
//! ask the kernel, afterwards the simulation. `Instant::now`, `SystemTime::now`, tokio's timers,
//! the order in which `select!` polls and the order of a `HashMap` all follow from the seed, in the
//! product and in its libraries. A process runs one seed on one thread, so that no earlier run can
//! influence it.

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::cell::{Cell, RefCell};

/// The time of the wall clocks when a simulation begins, in seconds since the Unix epoch.
const WALL_CLOCK_S: u64 = 1_800_000_000;
/// The time since boot at that moment, in milliseconds.
const UPTIME_MS: u64 = 1_000_000;

thread_local! {
    static SIMULATED: Cell<bool> = const { Cell::new(false) };
    /// Milliseconds since the simulation began.
    static NOW_MS: Cell<u64> = const { Cell::new(0) };
    /// The machine that is being stepped.
    static MACHINE: Cell<Clocks> = const { Cell::new(Clocks::NONE) };
    static ENTROPY: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    static RANDOM: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// A machine and its clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// The machine's number; 0 for none.
    pub machine: u32,
    /// By how much its clocks run fast, in thousandths.
    pub drift: i64,
    /// By how much its wall clock is ahead, in milliseconds.
    pub wall_ms: i64,
    /// By how much it was ahead when the process started.
    pub wall_at_start_ms: i64,
}

impl Clocks {
    /// No machine, and a correct clock.
    pub const NONE: Clocks = Clocks { machine: 0, drift: 0, wall_ms: 0, wall_at_start_ms: 0 };
}

/// Makes this thread's time and randomness those of the simulation. It must be called before any
/// use of either.
pub fn begin(seed: u64) {
    ENTROPY.with(|rng| *rng.borrow_mut() = Some(StdRng::seed_from_u64(seed ^ 0x5eed)));
    RANDOM.with(|rng| *rng.borrow_mut() = Some(StdRng::seed_from_u64(seed)));
    SIMULATED.with(|on| on.set(true));
}

/// Milliseconds since the simulation began, by no machine's clock.
pub fn now_ms() -> u64 {
    NOW_MS.with(Cell::get)
}

/// Sets the time.
pub fn set_now_ms(now_ms: u64) {
    NOW_MS.with(|now| now.set(now_ms));
}

/// The machine that is being stepped; 0 for none.
pub fn machine() -> u32 {
    MACHINE.with(Cell::get).machine
}

/// Steps as this machine.
pub fn set_machine(clocks: Clocks) {
    MACHINE.with(|current| current.set(clocks));
}

/// Microseconds since boot by the clock of the machine that is being stepped.
fn clock_us() -> u64 {
    let drift = MACHINE.with(Cell::get).drift;
    let passed_us = (now_ms() * 1_000) as i64;
    UPTIME_MS * 1_000 + (passed_us + passed_us / 1_000 * drift) as u64
}

/// Milliseconds since boot by that clock.
pub fn boot_ms() -> u64 {
    clock_us() / 1_000
}

/// Milliseconds since the Unix epoch by its wall clock as it was when the process started, moved on
/// with the clock since boot.
pub fn unix_ms() -> u64 {
    (WALL_CLOCK_S * 1_000 + boot_ms()).saturating_add_signed(MACHINE.with(Cell::get).wall_at_start_ms)
}

/// Milliseconds since the Unix epoch by a correct clock.
pub fn true_unix_ms() -> u64 {
    WALL_CLOCK_S * 1_000 + UPTIME_MS + now_ms()
}

/// Draws from the seed. Everything that the simulation itself decides comes from here.
pub fn draw<T>(with: impl FnOnce(&mut StdRng) -> T) -> T {
    RANDOM.with(|rng| with(rng.borrow_mut().get_or_insert_with(|| StdRng::seed_from_u64(0))))
}

/// A number below `below`, which is at least 1.
pub fn below(below: u64) -> u64 {
    draw(|rng| rng.random_range(0..below.max(1)))
}

/// True once in `in_how_many` times.
pub fn once_in(in_how_many: u64) -> bool {
    below(in_how_many) == 0
}

/// The C library's clock. Its contract: `out` points to a `timespec` that may be written.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, out: *mut libc::timespec) -> libc::c_int {
    if !SIMULATED.try_with(Cell::get).unwrap_or(false) {
        // SAFETY: the kernel's call has the same contract.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, out) } as libc::c_int;
    }
    let since_boot_us = clock_us();
    let us = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => {
            let wall_ms = MACHINE.try_with(Cell::get).map_or(0, |clocks| clocks.wall_ms);
            (WALL_CLOCK_S * 1_000_000 + since_boot_us).saturating_add_signed(wall_ms * 1_000)
        }
        _ => since_boot_us,
    };
    let time = libc::timespec { tv_sec: (us / 1_000_000) as i64, tv_nsec: (us % 1_000_000 * 1_000) as i64 };
    // SAFETY: the caller vouches for `out`.
    unsafe { out.write(time) };
    0
}

/// The C library's source of randomness. Its contract: `length` bytes may be written at `out`.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(out: *mut u8, length: libc::size_t, flags: libc::c_uint) -> libc::ssize_t {
    if !SIMULATED.try_with(Cell::get).unwrap_or(false) {
        // SAFETY: the kernel's call has the same contract.
        return unsafe { libc::syscall(libc::SYS_getrandom, out, length, flags) } as libc::ssize_t;
    }
    // SAFETY: the caller vouches for `out` and `length`.
    let bytes = unsafe { std::slice::from_raw_parts_mut(out, length) };
    ENTROPY.with(|rng| match rng.borrow_mut().as_mut() {
        Some(rng) => rng.fill_bytes(bytes),
        None => bytes.fill(0),
    });
    length as libc::ssize_t
}
