//! `dfs master` and `dfs chunkd`: one server in the foreground until it is asked to stop.

use std::path::PathBuf;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use dfs_chunkd::{ChunkServer, ChunkdConfig, ChunkdError};
use dfs_master::{EngineKind, Master, MasterConfig, MasterError};

use crate::exit::{refused, usage};
use crate::settings::Settings;
use crate::signals::StopSignals;

const MS: &str = "a number of milliseconds";
/// How often a running server is asked whether it can still serve.
const FAILURE_POLL: Duration = Duration::from_millis(200);

/// Runs a master until a stop signal.
///
/// # Errors
///
/// Wrong settings, or whatever keeps the master from starting.
pub fn master(settings: &Settings, signals: StopSignals) -> anyhow::Result<()> {
    let engine = match settings.text("master.meta") {
        "embedded" => EngineKind::Embedded,
        "memory" => EngineKind::Memory,
        "etcd" => return Err(usage("master.meta = \"etcd\": several masters are not there yet; use embedded")),
        other => return Err(usage(format!("master.meta = {other:?}: embedded or memory is expected"))),
    };
    let config = MasterConfig {
        data: PathBuf::from(settings.required("master.data", "--data")?),
        listen: settings.text("master.listen").to_owned(),
        engine,
        advertise: None,
        reclaim_delay_ms: settings.parse("master.reclaim_delay_ms", MS)?,
        lease_ms: settings.parse("master.lease_ms", MS)?,
        pulse_ms: settings.parse("master.pulse_ms", MS)?,
        report_ms: settings.parse("master.report_ms", MS)?,
        offline_ms: settings.parse("master.offline_ms", MS)?,
        sync_interval_ms: settings.parse("master.sync_interval_ms", MS)?,
        session_ms: settings.parse("master.session_ms", MS)?,
        reclaim_window_ms: settings.parse("master.reclaim_window_ms", MS)?,
        unknown_grace_ms: settings.parse("master.unknown_grace_ms", MS)?,
        repair_bytes_per_second: settings.parse("master.repair_bytes_per_second", "a number of bytes")?,
        scrub_bytes_per_second: settings.parse("master.scrub_bytes_per_second", "a number of bytes")?,
        scrub_period_ms: settings.parse("master.scrub_period_ms", MS)?,
    };
    let master = Master::start(config).map_err(explain_master)?;
    let addresses = master.addresses();
    tracing::info!(cluster = %master.cluster_id(), hot = %addresses.hot, control = %addresses.control,
        http = %addresses.http, "master serves");
    let failure = serve_until_stopped(signals, || master.failure())?;
    master.stop();
    // To try again may help: a disk that was full or gone can be back.
    failure.map_or(Ok(()), |reason| Err(anyhow::anyhow!("the master stopped serving: {reason}")))
}

/// Runs a chunk server until a stop signal.
///
/// # Errors
///
/// Wrong settings, or whatever keeps the server from starting.
pub fn chunkd(settings: &Settings, signals: StopSignals) -> anyhow::Result<()> {
    let directories = settings.required("chunkd.data", "--data")?;
    let advertise = settings.text("chunkd.advertise");
    let config = ChunkdConfig {
        data: directories.split(',').filter(|part| !part.is_empty()).map(PathBuf::from).collect(),
        master: crate::source::address(settings.text("chunkd.master"), settings.text("chunkd.master"))?,
        listen: settings.text("chunkd.listen").to_owned(),
        advertise: (!advertise.is_empty()).then(|| advertise.to_owned()),
        rack: settings.text("chunkd.rack").to_owned(),
        reserve_bytes: settings.parse("chunkd.reserve_bytes", "a number of bytes")?,
        op_timeout_ms: settings.parse("chunkd.op_timeout_ms", MS)?,
        open_files_max: settings.parse("chunkd.open_files", "a number of files")?,
    };
    let server = ChunkServer::start(config).map_err(explain_chunkd)?;
    let addresses = server.addresses();
    tracing::info!(data = %addresses.data, http = %addresses.http, "chunk server serves");
    let failure = serve_until_stopped(signals, || server.failure())?;
    server.stop();
    failure.map_or(Ok(()), |reason| Err(refused(reason)))
}

/// Waits for a stop signal, or for the server to fail for good: then returns why.
fn serve_until_stopped(signals: StopSignals, failure: impl Fn() -> Option<String>) -> anyhow::Result<Option<String>> {
    let stop = signals.events()?;
    loop {
        match stop.recv_timeout(FAILURE_POLL) {
            Ok(signal) => {
                tracing::info!(%signal, "stopping");
                return Ok(None);
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(reason) = failure() {
                    return Ok(Some(reason));
                }
            }
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("signals cannot be waited for"),
        }
    }
}

/// Errors that come back at each attempt, until somebody has acted, end the program as refused.
fn explain_master(error: MasterError) -> anyhow::Error {
    match &error {
        MasterError::DataDir(_) | MasterError::Store(_) | MasterError::Listen { .. } => refused(error.to_string()),
        MasterError::Os(_) => error.into(),
    }
}

fn explain_chunkd(error: ChunkdError) -> anyhow::Error {
    match &error {
        ChunkdError::Config(_) => usage(error.to_string()),
        ChunkdError::DataDir(_) | ChunkdError::Listen { .. } => refused(error.to_string()),
        ChunkdError::Threads(_) => error.into(),
    }
}
