//! The log: one line an event on standard error, structured fields after the text.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts the log of this process at `level` (`error` to `trace`, or a filter such as `info,dfs_mount=debug`).
/// The second call in a process does nothing.
///
/// # Errors
///
/// What is wrong with `level`.
pub fn init_log(level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|error| {
        format!("log level {level:?}: {error} (expected error, warn, info, debug, trace, or module=level pairs)")
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .finish();
    // Tests start several daemons in one process: the first one's log serves all.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}
