//! A mount's session begins.

use dfs_proto::{InodeId, SessionId};

use crate::core::key::Key;
use crate::core::outcome::{Body, Outcome};
use crate::core::record::{Record, Session};
use crate::core::request::SessionOpen;
use crate::core::view::{Stop, View};

/// Opens a session, or finds the one (`known`) that an earlier try of the same mount opened. It is durable before the
/// mount is told, so that a restarted master expects it back.
///
/// # Errors
///
/// [`FsError::NoEntry`](dfs_proto::FsError::NoEntry) and [`FsError::NotDirectory`](dfs_proto::FsError::NotDirectory)
/// for a subdirectory that is not there; [`Stop`].
pub fn session_open(view: &View<'_>, known: Option<SessionId>, request: &SessionOpen) -> Result<Outcome, Stop> {
    let at = view.walk(InodeId::ROOT, &request.subdir)?;
    view.directory(at)?;
    let root = view.inode(at)?;
    let mut outcome = Outcome::new(view);
    let session = match known {
        Some(session) => {
            if let Some(record) = view.find(&Key::Session(session))? {
                outcome.durable_first = record.seq();
            }
            session
        }
        None => {
            let session = view.new_session_id()?;
            let record = Session {
                client_id: request.client_id.clone(),
                host: request.host.clone(),
                mount_point: request.mount_point.clone(),
                software: request.software.clone(),
                metrics_address: request.metrics_address.clone(),
                subdir: request.subdir.iter().map(|name| name.as_bytes()).collect::<Vec<_>>().join(&b'/').into(),
                is_read_only: request.is_read_only,
                is_fenced: false,
                seq: outcome.seq(),
            };
            outcome.durable_first = record.seq;
            outcome.put(Key::Session(session), Record::Session(record.into()));
            session
        }
    };
    Ok(outcome.reply(Body::Session { session, root }))
}
