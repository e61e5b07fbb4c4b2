//! The command line: its commands, their flags, and the exit status of the program.
//!
//! Exit statuses: 0 done; 1 failed, with one line on standard error that says why; 2 the command
//! line or the configuration is wrong, with one line that names the key, the value and the accepted
//! values; 130 ended by a signal.
//!
//! | module | what it holds |
//! |---|---|
//! | [`program`] | parsing, logging, dispatch, exit status |
//! | `flags` | flags of the commands that are configured in layers |
//! | `layers` | the layers of a command's configuration |
//! | `admin` | the administrator's commands |
//! | `admin_flags` | the placement driver's URLs, and the format of the output |
//! | `coordination` | `kv`, the coordination store |
//! | `sql` | `sql`, statements through the client |
//! | `show` | answers of the placement driver as text |

mod admin;
mod admin_flags;
mod coordination;
mod flags;
mod layers;
pub mod program;
mod show;
mod sql;

pub use program::main;
