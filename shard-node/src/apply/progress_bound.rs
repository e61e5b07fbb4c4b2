//! A bound on standstill: waits for as long as there is progress.

use std::time::Duration;
use tokio::sync::watch;

/// Waits for `done`, as long as `progress` changes within `patience` each time.
pub(super) async fn unless_still<T>(
    done: impl Future<Output = T>,
    mut progress: watch::Receiver<u64>,
    patience: Duration,
) -> Option<T> {
    tokio::pin!(done);
    loop {
        tokio::select! {
            biased;
            result = &mut done => return Some(result),
            moved = evenkeel_host::timeout(patience, progress.changed()) => match moved {
                Ok(Ok(())) => {}
                // The sender of progress is gone, or there is no progress.
                Ok(Err(_)) | Err(_) => return None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A backlog of any length is applied; only a standstill is a reason to give up.
    #[tokio::test]
    async fn as_long_as_there_is_progress_there_is_no_limit() {
        let patience = Duration::from_secs(1);
        let (moves, progress) = watch::channel(0);
        let begun = evenkeel_host::tokio_now();
        let applying = async {
            while evenkeel_host::tokio_now().duration_since(begun) < patience * 2 {
                evenkeel_host::sleep(patience / 20).await;
                moves.send_modify(|step| *step += 1);
            }
        };
        assert_eq!(unless_still(applying, progress.clone(), patience).await, Some(()));
        assert_eq!(unless_still(std::future::pending::<()>(), progress, patience).await, None);
    }
}
