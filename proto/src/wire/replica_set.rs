//! Replica sets as messages.

use std::sync::Arc;

use super::pb;
use crate::replica_set::{
    ChangeAnswer, ChangeKind, ChangeRequest, Grant, Home, Member, Order, OrderKind, OrderOutcome, OrderReport,
};
use crate::{BootSession, ChunkId, ChunkIndex, FsError, InodeId, NodeId, Version};

impl From<&Member> for pb::Replica {
    fn from(member: &Member) -> Self {
        Self { node: member.node.0, address: member.address.to_string(), alive: true }
    }
}

impl From<pb::Replica> for Member {
    fn from(replica: pb::Replica) -> Self {
        Self { node: NodeId(replica.node), address: Arc::from(replica.address) }
    }
}

impl From<&Grant> for pb::Grant {
    fn from(grant: &Grant) -> Self {
        Self {
            chunk: grant.chunk.0,
            version: grant.version.0,
            primary: grant.primary.0,
            primary_boot: grant.primary_boot.0,
            members: grant.members.iter().map(Into::into).collect(),
            may_create: grant.may_create,
            chunk_size_log2: grant.chunk_size_log2,
            syncing: grant.syncing.iter().map(Into::into).collect(),
            min_in_sync: grant.min_in_sync,
            inode: grant.home.inode.0,
            index: grant.home.index.0,
            loss_version: grant.loss_version.0,
        }
    }
}

impl From<pb::Grant> for Grant {
    fn from(message: pb::Grant) -> Self {
        Self {
            chunk: ChunkId(message.chunk),
            home: Home { inode: InodeId(message.inode), index: ChunkIndex(message.index) },
            version: Version(message.version),
            primary: NodeId(message.primary),
            primary_boot: BootSession(message.primary_boot),
            members: message.members.into_iter().map(Into::into).collect(),
            syncing: message.syncing.into_iter().map(Into::into).collect(),
            min_in_sync: message.min_in_sync,
            may_create: message.may_create,
            chunk_size_log2: message.chunk_size_log2,
            loss_version: Version(message.loss_version),
        }
    }
}

impl From<&ChangeRequest> for pb::ChangeReplicasRequest {
    fn from(request: &ChangeRequest) -> Self {
        use pb::change_replicas_request::Change;
        Self {
            node: request.node.0,
            boot_session: request.boot.0,
            chunk: request.chunk.0,
            inode: request.home.inode.0,
            index: request.home.index.0,
            version: request.version.0,
            reason: request.reason.clone(),
            change: Some(match &request.kind {
                ChangeKind::Drop { node } => Change::Drop(node.0),
                ChangeKind::Leave => Change::Leave(true),
                ChangeKind::FinishSync { node } => Change::FinishSync(node.0),
                ChangeKind::Refresh => Change::Refresh(true),
            }),
        }
    }
}

impl TryFrom<pb::ChangeReplicasRequest> for ChangeRequest {
    type Error = FsError;

    fn try_from(message: pb::ChangeReplicasRequest) -> Result<Self, FsError> {
        use pb::change_replicas_request::Change;
        let kind = match message.change {
            Some(Change::Drop(node)) => ChangeKind::Drop { node: NodeId(node) },
            Some(Change::Leave(_)) => ChangeKind::Leave,
            Some(Change::FinishSync(node)) => ChangeKind::FinishSync { node: NodeId(node) },
            Some(Change::Refresh(_)) => ChangeKind::Refresh,
            None => {
                return Err(FsError::Protocol("a change of a replica set without a kind that is known here".into()));
            }
        };
        Ok(Self {
            node: NodeId(message.node),
            boot: BootSession(message.boot_session),
            chunk: ChunkId(message.chunk),
            home: Home { inode: InodeId(message.inode), index: ChunkIndex(message.index) },
            version: Version(message.version),
            kind,
            reason: message.reason,
        })
    }
}

impl From<ChangeAnswer> for pb::ChangeReplicasReply {
    fn from(answer: ChangeAnswer) -> Self {
        Self { failure: answer.result.err().as_ref().map(Into::into), grant: answer.grant.unwrap_or_default() }
    }
}

impl From<pb::ChangeReplicasReply> for ChangeAnswer {
    fn from(message: pb::ChangeReplicasReply) -> Self {
        Self {
            result: message.failure.map_or(Ok(()), |failure| Err(failure.into())),
            grant: Some(message.grant).filter(|grant| !grant.is_empty()),
        }
    }
}

impl From<&Order> for pb::Order {
    fn from(order: &Order) -> Self {
        use pb::order::Kind;
        Self {
            id: order.id,
            chunk: order.chunk.0,
            grant: order.grant.clone(),
            kind: Some(match order.kind {
                OrderKind::Fill { node } => Kind::Fill(node.0),
                OrderKind::Scrub { deep } => Kind::Scrub(deep),
                OrderKind::HandOver => Kind::HandOver(true),
                OrderKind::Discard { below } => Kind::DiscardBelow(below.0),
            }),
        }
    }
}

impl TryFrom<pb::Order> for Order {
    type Error = FsError;

    fn try_from(message: pb::Order) -> Result<Self, FsError> {
        use pb::order::Kind;
        let kind = match message.kind {
            Some(Kind::Fill(node)) => OrderKind::Fill { node: NodeId(node) },
            Some(Kind::Scrub(deep)) => OrderKind::Scrub { deep },
            Some(Kind::HandOver(_)) => OrderKind::HandOver,
            Some(Kind::DiscardBelow(version)) => OrderKind::Discard { below: Version(version) },
            None => return Err(FsError::Protocol("an order of a kind that is not known here".into())),
        };
        Ok(Self { id: message.id, chunk: ChunkId(message.chunk), kind, grant: message.grant })
    }
}

impl From<&OrderOutcome> for pb::OrderResult {
    fn from(outcome: &OrderOutcome) -> Self {
        let report = outcome.result.as_ref().copied().unwrap_or_default();
        Self {
            id: outcome.id,
            failure: outcome.result.as_ref().err().map(Into::into),
            copied_bytes: report.copied_bytes,
            checked_units: report.checked_units,
            bad_units: report.bad_units,
            repaired_units: report.repaired_units,
        }
    }
}

impl From<pb::OrderResult> for OrderOutcome {
    fn from(message: pb::OrderResult) -> Self {
        let report = OrderReport {
            copied_bytes: message.copied_bytes,
            checked_units: message.checked_units,
            bad_units: message.bad_units,
            repaired_units: message.repaired_units,
        };
        Self { id: message.id, result: message.failure.map_or(Ok(report), |failure| Err(failure.into())) }
    }
}
