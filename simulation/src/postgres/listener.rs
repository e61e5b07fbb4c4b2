//! The server as a replica starts it, connects to it and stops it.

use super::data::Tables;
use super::server::SimulatedPostgres;
use super::wire;
use evenkeel_host::{Duplex, Server};
use std::io;
use tokio::sync::watch;

/// Bytes between a session and its client.
const PIPE_BYTES: usize = 256 << 10;
impl Server for SimulatedPostgres {
    fn start(&self) -> Result<u32, String> {
        let mut state = self.state();
        if state.refuses_start || state.full {
            return Err("the server does not start".into());
        }
        if state.running {
            // R2: the processes of an earlier start end now, and their memory with them.
            state.end_all();
            state.lose_commits();
            if let Some(down) = state.down.take() {
                down.send_replace(true);
            }
        }
        state.starts += 1;
        state.running = true;
        state.down = Some(watch::Sender::new(false));
        let start = state.starts;
        drop(state);
        self.released.notify_waiters();
        Ok(start)
    }

    fn down(&self) -> watch::Receiver<bool> {
        match &self.state().down {
            Some(down) => down.subscribe(),
            None => watch::channel(true).1,
        }
    }

    fn connect(&self) -> io::Result<Box<dyn Duplex>> {
        let start = {
            let state = self.state();
            if !state.running {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            state.starts
        };
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(wire::serve(self.clone(), start, ours));
        Ok(Box::new(theirs))
    }

    fn halt(&self) {
        self.crash();
    }

    fn discard(&self) {
        self.crash();
        let mut state = self.state();
        state.tables = Tables::default();
        state.zombies.clear();
    }
}
