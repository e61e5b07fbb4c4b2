//! The end of the process when the durable log fails (log rule 13).
//!
//! After a failed sync the durable state is unknown. A replica that continued could break a
//! promise.

use crate::wal::WalError;

/// Ends the process after an error of the durable log.
pub(crate) fn abort_on(error: &WalError) -> ! {
    tracing::error!(%error, "the replicated log has failed; stopping the process");
    eprintln!("the replicated log has failed, stopping the process: {error}");
    std::process::abort();
}

/// Ends the process if its thread panics: OmniPaxos panics when its storage fails.
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the replicated log has failed; stopping the process");
            std::process::abort();
        }
    }
}
