//! Operations as their clients saw them: the input of the checkers.
//!
//! | module | contents |
//! |---|---|
//! | `run_history` | the history of a run, and its phase |
//! | `events` | operations on counters, lost writes |
//! | `coordination` | operations on the coordination store |
//! | `large_values` | statements that wrote large values |
//! | `load_spike` | answers before, during and after a load spike |

pub mod coordination;
pub mod events;
pub mod large_values;
pub mod load_spike;
pub mod run_history;

pub use run_history::{RunHistory, SharedHistory};
