//! A machine: a process with a runtime of its own, stepped from outside.
//!
//! An idle runtime would sleep until its next timer. Here it reports that it is idle
//! ([`tokio::runtime::Builder::on_thread_park`]) and the step ends; at the next step time has
//! passed, and its timers fire. A frozen machine is not stepped. A machine that dies drops its
//! runtime and with it all tasks.

use crate::process::{self, Clocks};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

/// How often a runtime must have found nothing to do before a step is over: timers fire after the
/// first time.
const IDLE_ROUNDS: usize = 2;

#[derive(Default)]
struct Idle {
    rounds: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

/// See the module.
pub struct Machine {
    /// Its number, from 1, and its clocks.
    pub clocks: Clocks,
    /// Until when it is frozen, in milliseconds.
    pub frozen_until_ms: u64,
    idle: Arc<Idle>,
    process: Option<(LocalSet, Runtime)>,
    /// How its process ended by itself.
    ended: Rc<RefCell<Option<String>>>,
}

impl Machine {
    /// A machine that is switched off.
    pub fn new(number: u32, drift: i64) -> Machine {
        let clocks = Clocks { machine: number, drift, ..Clocks::NONE };
        Machine { clocks, frozen_until_ms: 0, idle: Arc::default(), process: None, ended: Rc::default() }
    }

    /// Whether its process runs.
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Starts a process; it returns the reason why it ended.
    pub fn start(&mut self, main: impl Future<Output = String> + 'static) {
        self.clocks.wall_at_start_ms = self.clocks.wall_ms;
        process::set_machine(self.clocks);
        let idle = self.idle.clone();
        let parked = move || {
            idle.rounds.fetch_add(1, Ordering::Relaxed);
            if let Some(waker) = idle.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
                waker.wake();
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().on_thread_park(parked).build();
        let Ok(runtime) = runtime else { return };
        let local = LocalSet::new();
        let ended = self.ended.clone();
        local.spawn_local(async move {
            let why = main.await;
            *ended.borrow_mut() = Some(why);
        });
        self.process = Some((local, runtime));
        process::set_machine(Clocks::NONE);
    }

    /// Runs the process until it is idle. Returns the reason why it has ended, if it has.
    pub fn step(&mut self) -> Option<String> {
        let (local, runtime) = self.process.as_ref()?;
        process::set_machine(self.clocks);
        self.idle.rounds.store(0, Ordering::Relaxed);
        runtime.block_on(local.run_until(UntilIdle(&self.idle)));
        process::set_machine(Clocks::NONE);
        self.ended.borrow_mut().take()
    }

    /// Ends the process at once.
    pub fn die(&mut self) {
        if let Some((local, runtime)) = self.process.take() {
            process::set_machine(self.clocks);
            {
                let _within = runtime.enter();
                drop(local);
            }
            drop(runtime);
            process::set_machine(Clocks::NONE);
        }
        self.ended.borrow_mut().take();
        self.frozen_until_ms = 0;
    }
}

struct UntilIdle<'a>(&'a Idle);

impl Future for UntilIdle<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0.rounds.load(Ordering::Relaxed) >= IDLE_ROUNDS {
            return Poll::Ready(());
        }
        *self.0.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        Poll::Pending
    }
}
