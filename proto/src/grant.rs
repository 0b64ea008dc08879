//! Sealed grants: which servers hold a chunk, at which version, and which one orders its writes.
//!
//! The master seals one for each chunk location it hands out; a mount passes it on unread; chunk servers check the
//! seal with the cluster's grant key, so nobody but the master can name replicas.
//!
//! ```text
//! offset (bytes)  size (bytes)   field
//! 0               16             first half of HMAC-SHA256(grant key, bytes 16..)
//! 16              rest           the `Grant` message, protobuf
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use hmac::{Hmac, KeyInit, Mac};
use prost::Message;
use sha2::Sha256;

use crate::replica_set::Grant;
use crate::wire::pb;

const SEAL_BYTES: usize = 16;

/// The secret with which the master seals grants and chunk servers check them.
#[derive(Clone)]
pub struct GrantKey([u8; 32]);

impl std::fmt::Debug for GrantKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrantKey(..)")
    }
}

impl GrantKey {
    /// Returns the key with these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the key's bytes, to be stored or handed to a chunk server.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn mac(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(body);
        mac
    }

    /// Returns `grant`, encoded and sealed.
    pub fn seal(&self, grant: &Grant) -> Bytes {
        let body = pb::Grant::from(grant).encode_to_vec();
        let seal = self.mac(&body).finalize().into_bytes();
        let mut sealed = BytesMut::with_capacity(SEAL_BYTES + body.len());
        sealed.put_slice(&seal[..SEAL_BYTES]);
        sealed.put_slice(&body);
        sealed.freeze()
    }

    /// Returns the grant in `sealed`, or `None` if the seal is not ours or the content cannot be read.
    pub fn open(&self, sealed: &[u8]) -> Option<Grant> {
        let (seal, body) = sealed.split_at_checked(SEAL_BYTES)?;
        self.mac(body).verify_truncated_left(seal).ok()?;
        pb::Grant::decode(body).ok().map(Grant::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica_set::{Home, Member};
    use crate::{BootSession, ChunkId, ChunkIndex, InodeId, NodeId, Version};

    fn grant() -> Grant {
        let member = |node| Member { node: NodeId(node), address: "host:7100".into() };
        Grant {
            chunk: ChunkId(5),
            home: Home { inode: InodeId(9), index: ChunkIndex(3) },
            version: Version(2),
            primary: NodeId(1),
            primary_boot: BootSession(77),
            members: vec![member(1), member(2)],
            syncing: vec![member(3)],
            min_in_sync: 2,
            may_create: true,
            chunk_size_log2: 26,
            loss_version: Version(2),
        }
    }

    #[test]
    fn a_grant_opens_only_whole_and_with_its_key() {
        let (key, grant) = (GrantKey::new([7; 32]), grant());
        let sealed = key.seal(&grant);
        assert_eq!(key.open(&sealed), Some(grant));
        assert_eq!(GrantKey::new([8; 32]).open(&sealed), None);
        for bit in 0..sealed.len() * 8 {
            let mut torn = sealed.to_vec();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.open(&torn), None, "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert_eq!(key.open(&sealed[..length]), None, "length {length}");
        }
    }

    #[test]
    fn a_grant_from_before_losses_were_noted_tells_of_none() {
        let key = GrantKey::new([7; 32]);
        let now = pb::Grant::from(&grant()).encode_to_vec();
        let (before, loss) = now.split_at(now.len() - 2);
        assert_eq!(loss, [12 << 3, 2], "the last field");
        let sealed = [&key.mac(before).finalize().into_bytes()[..SEAL_BYTES], before].concat();
        assert_eq!(key.open(&sealed), Some(Grant { loss_version: Version(0), ..grant() }));
        // And a grant that tells of none is what it was, byte for byte.
        assert_eq!(key.seal(&Grant { loss_version: Version(0), ..grant() }), sealed);
    }
}
