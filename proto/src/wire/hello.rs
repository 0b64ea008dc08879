//! The first exchange on each connection of the hot plane: who is there, of which cluster, speaking what.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Connection, FrameKind, WireError, pb};
use crate::ids::{BootSession, ClusterId, NodeId, SessionId};

/// The newest version of the hot plane's protocol that this build speaks.
pub const PROTOCOL: u32 = 1;
/// The oldest version it still works with.
pub const PROTOCOL_MIN: u32 = 1;

/// What one end says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// `None`: not known yet, which only a mount's first connection may say.
    pub cluster: Option<ClusterId>,
    /// The part it plays.
    pub role: pb::Role,
    /// Its node id, for chunk servers, else 0.
    pub node: NodeId,
    /// This run of its process.
    pub boot: BootSession,
    /// Its session, for mounts that have one, else 0.
    pub session: SessionId,
}

/// What is known of the other end once both have said hello.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its cluster: ours, or, for a mount that did not know one, the one it now belongs to.
    pub cluster: Option<ClusterId>,
    /// The part it plays.
    pub role: pb::Role,
    /// The protocol version that both use from here on.
    pub protocol: u32,
    /// Its node id, for chunk servers, else 0.
    pub node: NodeId,
    /// This run of its process.
    pub boot: BootSession,
    /// Its session, for mounts that have one, else 0.
    pub session: SessionId,
}

/// Says hello as the end that connected, and returns the other end's answer.
///
/// # Errors
///
/// [`WireError::Refused`] with the peer's reason; [`WireError::Refused`] if the peer is not `expected` or of another
/// cluster; else as [`Connection::call`].
pub fn offer_hello(
    connection: &mut Connection,
    own: &Identity,
    expected: pb::Role,
    deadline: Instant,
) -> Result<Peer, WireError> {
    let hello = pb::Hello {
        cluster_id: own.cluster.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id.0)),
        role: own.role.into(),
        protocol: PROTOCOL,
        protocol_min: PROTOCOL_MIN,
        features: 0,
        node: own.node.0,
        boot_session: own.boot.0,
        session: own.session.0,
    };
    let (reply, _): (pb::HelloReply, _) =
        connection.call(FrameKind::Hello, FrameKind::HelloReply, &hello, &[], Some(deadline))?;
    if !reply.refused.is_empty() {
        return Err(WireError::Refused(reply.refused));
    }
    let cluster = ClusterId::from_slice(&reply.cluster_id);
    if let (Some(ours), Some(theirs)) = (own.cluster, cluster)
        && ours != theirs
    {
        return Err(WireError::Refused(format!("the server is of cluster {theirs}, we are of cluster {ours}")));
    }
    if reply.role() != expected {
        return Err(WireError::Refused(format!("a {} answers there", role_word(reply.role()))));
    }
    Ok(Peer {
        cluster,
        role: reply.role(),
        protocol: reply.protocol,
        node: NodeId(reply.node),
        boot: BootSession(reply.boot_session),
        session: SessionId(0),
    })
}

/// Waits for the hello of whoever connected, checks it, and answers. A refusal is sent before it is returned.
///
/// # Errors
///
/// [`WireError::Refused`] if the peer's cluster, protocol or role does not fit; else as [`Connection::recv`].
pub fn accept_hello(
    connection: &mut Connection,
    own: &Identity,
    allowed: &[pb::Role],
    timeout: Duration,
) -> Result<Peer, WireError> {
    let deadline = Instant::now() + timeout;
    let frame = connection.recv(Some(deadline))?;
    let request_id = frame.request_id;
    let (hello, _): (pb::Hello, _) = frame.decode(FrameKind::Hello)?;
    let refused = refusal(own, &hello, allowed).unwrap_or_default();
    let protocol = PROTOCOL.min(hello.protocol);
    let reply = pb::HelloReply {
        cluster_id: own.cluster.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id.0)),
        role: own.role.into(),
        protocol,
        features: 0,
        node: own.node.0,
        boot_session: own.boot.0,
        refused: refused.clone(),
    };
    connection.send(FrameKind::HelloReply, request_id, &reply, &[])?;
    if !refused.is_empty() {
        return Err(WireError::Refused(refused));
    }
    Ok(Peer {
        cluster: ClusterId::from_slice(&hello.cluster_id),
        role: hello.role(),
        protocol,
        node: NodeId(hello.node),
        boot: BootSession(hello.boot_session),
        session: SessionId(hello.session),
    })
}

/// Returns why `hello` is not welcome, or `None`.
fn refusal(own: &Identity, hello: &pb::Hello, allowed: &[pb::Role]) -> Option<String> {
    if hello.protocol < PROTOCOL_MIN || hello.protocol_min > PROTOCOL {
        return Some(format!(
            "protocol versions {}..={} are spoken here, the peer speaks {}..={}: upgrade the older one",
            PROTOCOL_MIN, PROTOCOL, hello.protocol_min, hello.protocol
        ));
    }
    if !allowed.contains(&hello.role()) {
        return Some(format!("a {} has nothing to ask here", role_word(hello.role())));
    }
    let theirs = ClusterId::from_slice(&hello.cluster_id);
    match (own.cluster, theirs) {
        (Some(ours), Some(theirs)) if ours != theirs => {
            Some(format!("this is cluster {ours}, the peer belongs to cluster {theirs}"))
        }
        (_, None) if !hello.cluster_id.is_empty() => Some("a cluster id has 16 bytes".into()),
        (_, None) if hello.role() != pb::Role::Mount => Some("the hello names no cluster".into()),
        _ => None,
    }
}

fn role_word(role: pb::Role) -> &'static str {
    match role {
        pb::Role::Unknown => "peer of unknown role",
        pb::Role::Master => "master",
        pb::Role::ChunkServer => "chunk server",
        pb::Role::Mount => "mount",
        pb::Role::Admin => "administrator",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: ClusterId = ClusterId([1; 16]);

    fn check(hello: pb::Hello, refused: Option<&str>) {
        let own = Identity {
            cluster: Some(OURS),
            role: pb::Role::Master,
            node: NodeId(0),
            boot: BootSession(1),
            session: SessionId(0),
        };
        let reason = refusal(&own, &hello, &[pb::Role::Mount, pb::Role::ChunkServer]);
        match refused {
            None => assert_eq!(reason, None),
            Some(part) => assert!(reason.as_deref().is_some_and(|text| text.contains(part)), "{reason:?}"),
        }
    }

    #[test]
    fn a_peer_is_refused_with_the_reason() {
        let good = pb::Hello {
            cluster_id: Bytes::copy_from_slice(&OURS.0),
            role: pb::Role::Mount.into(),
            protocol: PROTOCOL,
            protocol_min: PROTOCOL_MIN,
            ..Default::default()
        };
        check(good.clone(), None);
        check(pb::Hello { cluster_id: Bytes::new(), ..good.clone() }, None);
        check(pb::Hello { protocol: PROTOCOL + 1, ..good.clone() }, None);
        check(pb::Hello { protocol: PROTOCOL + 2, protocol_min: PROTOCOL + 1, ..good.clone() }, Some("protocol"));
        check(pb::Hello { cluster_id: vec![2; 16].into(), ..good.clone() }, Some("cluster 0202"));
        check(pb::Hello { cluster_id: vec![2; 3].into(), ..good.clone() }, Some("16 bytes"));
        check(pb::Hello { role: pb::Role::Admin.into(), ..good.clone() }, Some("administrator"));
        check(pb::Hello { role: pb::Role::ChunkServer.into(), cluster_id: Bytes::new(), ..good }, Some("no cluster"));
    }
}
