//! The master's data directory: whose it is, and that only one process uses it.
//!
//! ```text
//! DIR/LOCK      held with flock while a master uses the directory
//! DIR/CLUSTER   text: format, cluster id, grant key; made once, on stable media before anything is served
//! DIR/meta      the metadata store
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use dfs_proto::ClusterId;
use dfs_proto::env::random_bytes;
use dfs_proto::grant::GrantKey;
use nix::fcntl::{Flock, FlockArg};

use super::config::MasterError;

const FORMAT: u32 = 1;

/// A data directory in use.
pub(super) struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// What makes a cluster this one and no other.
#[derive(Clone, Debug)]
pub(super) struct ClusterIdentity {
    pub(super) cluster: ClusterId,
    pub(super) grant_key: GrantKey,
}

impl ClusterIdentity {
    /// Makes a new cluster.
    pub(super) fn new() -> Self {
        Self { cluster: ClusterId(random_bytes()), grant_key: GrantKey::new(random_bytes()) }
    }

    fn to_text(&self) -> String {
        let key: String = self.grant_key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("dfs master\nformat {FORMAT}\ncluster {}\ngrant_key {key}\n", self.cluster)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        if lines.next() != Some("dfs master") {
            return Err("it is not the file of a dfs master".into());
        }
        let mut value = |name: &str| {
            let line = lines.next().and_then(|line| line.split_once(' ')).filter(|(key, _)| *key == name);
            line.map(|(_, value)| value.to_owned()).ok_or_else(|| format!("the line {name:?} is missing"))
        };
        let format: u32 = value("format")?.parse().map_err(|_| "the format is not a number".to_owned())?;
        if format > FORMAT {
            return Err(format!("it has format {format}, this dfs knows formats up to {FORMAT}: use a newer dfs"));
        }
        let cluster = value("cluster")?.parse()?;
        let key = value("grant_key")?;
        // 64 hexadecimal digits: two cluster ids' worth.
        let halves = key.split_at_checked(32).ok_or("the grant key is cut short")?;
        let (first, second): (ClusterId, ClusterId) = (halves.0.parse()?, halves.1.parse()?);
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&first.0);
        bytes[16..].copy_from_slice(&second.0);
        Ok(Self { cluster, grant_key: GrantKey::new(bytes) })
    }
}

impl DataDir {
    /// Makes the directory if it is absent, and locks it.
    ///
    /// # Errors
    ///
    /// [`MasterError::DataDir`] if another process uses it, or it cannot be used.
    pub(super) fn open(path: &Path) -> Result<Self, MasterError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            MasterError::DataDir(format!("{}: {what}: {error}", path.display()))
        };
        fs::create_dir_all(path).map_err(|error| failed("cannot make the data directory", &error))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("LOCK"))
            .map_err(|error| failed("cannot open the lock file", &error))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => {
                MasterError::DataDir(format!("{}: another process uses this data directory", path.display()))
            }
            error => failed("cannot lock", &error),
        })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Returns where the metadata store is.
    pub(super) fn store_path(&self) -> PathBuf {
        self.path.join("meta")
    }

    /// Returns the identity that is there.
    ///
    /// # Errors
    ///
    /// [`MasterError::DataDir`] if it cannot be read, is of a newer format, or the store beside it is gone.
    pub(super) fn identity(&self) -> Result<Option<ClusterIdentity>, MasterError> {
        let file = self.path.join("CLUSTER");
        let failed = |what: String| MasterError::DataDir(format!("{}: {what}", file.display()));
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
        };
        let identity = ClusterIdentity::from_text(&text).map_err(failed)?;
        if !self.store_path().is_dir() {
            let cluster = identity.cluster;
            return Err(failed(format!("the directory belongs to cluster {cluster}, but its metadata is missing")));
        }
        Ok(Some(identity))
    }

    /// Writes the identity of a new cluster. It is on stable media on return.
    ///
    /// # Errors
    ///
    /// [`MasterError::DataDir`].
    pub(super) fn write_identity(&self, identity: &ClusterIdentity) -> Result<(), MasterError> {
        let write = || -> std::io::Result<()> {
            let draft = self.path.join("CLUSTER.new");
            // The grant key is a secret.
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
            file.write_all(identity.to_text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, self.path.join("CLUSTER"))?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| {
            MasterError::DataDir(format!("{}: cannot write the cluster's identity: {error}", self.path.display()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::open(directory.path()).unwrap();
        assert!(data.identity().unwrap().is_none());
        let identity = ClusterIdentity::new();
        data.write_identity(&identity).unwrap();
        assert!(data.identity().is_err(), "there is no store beside it");
        fs::create_dir(data.store_path()).unwrap();
        let found = data.identity().unwrap().unwrap();
        assert_eq!(found.cluster, identity.cluster);
        assert_eq!(found.grant_key.as_bytes(), identity.grant_key.as_bytes());
    }

    #[test]
    fn a_second_user_and_a_newer_format_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::open(directory.path()).unwrap();
        let Err(error) = DataDir::open(directory.path()) else { panic!("locked twice") };
        assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
        fs::write(directory.path().join("CLUSTER"), "dfs master\nformat 2\n").unwrap();
        let error = data.identity().unwrap_err().to_string();
        assert!(error.contains("format 2") && error.contains("up to 1"), "{error}");
    }
}
