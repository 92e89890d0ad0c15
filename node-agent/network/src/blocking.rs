//! Work that waits, beside the runtime's own threads.

use crate::NetworkError;

/// Runs what waits for the kernel, or for a program, away from the runtime's own threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(NetworkError::Unsupported(format!(
                "work on the network did not finish: {error}"
            )))
        })
}
