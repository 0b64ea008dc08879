//! The operations of FUSE, and the metrics of each, looked up once.

use std::time::Instant;

use prometheus::{Histogram, IntCounter};

use crate::metrics::Metrics;

macro_rules! ops {
    ($($name:ident => $word:literal),* $(,)?) => {
        /// An operation the kernel asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op {
            $(#[doc = $word] $name),*
        }

        impl Op {
            const ALL: &'static [(Op, &'static str)] = &[$((Op::$name, $word)),*];

            fn word(self) -> &'static str {
                match self { $(Op::$name => $word),* }
            }
        }
    };
}

ops! {
    Lookup => "lookup", GetAttr => "getattr", SetAttr => "setattr", ReadLink => "readlink", Mknod => "mknod",
    Mkdir => "mkdir", Symlink => "symlink", Unlink => "unlink", Rmdir => "rmdir", Rename => "rename", Link => "link",
    Open => "open", Create => "create", Read => "read", Write => "write", Flush => "flush", Release => "release",
    Fsync => "fsync", OpenDir => "opendir", ReadDir => "readdir", ReadDirPlus => "readdirplus",
    FsyncDir => "fsyncdir", StatFs => "statfs", SetXattr => "setxattr", GetXattr => "getxattr",
    ListXattr => "listxattr", RemoveXattr => "removexattr", Fallocate => "fallocate", Lseek => "lseek",
    CopyFileRange => "copy_file_range",
}

/// What a call that takes long is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// The master.
    Master,
    /// Data from chunk servers.
    Data,
    /// That what was written gets to chunk servers, and makes room.
    Room,
}

impl Op {
    /// Returns what the operation waits for, if it has to wait.
    pub fn waits_for(self) -> WaitsFor {
        match self {
            Self::Read | Self::Lseek => WaitsFor::Data,
            Self::Write | Self::Flush | Self::Release | Self::Fsync | Self::Fallocate | Self::CopyFileRange => {
                WaitsFor::Room
            }
            Self::SetAttr
            | Self::Lookup
            | Self::GetAttr
            | Self::ReadLink
            | Self::Mknod
            | Self::Mkdir
            | Self::Symlink
            | Self::Unlink
            | Self::Rmdir
            | Self::Rename
            | Self::Link
            | Self::Open
            | Self::Create
            | Self::OpenDir
            | Self::ReadDir
            | Self::ReadDirPlus
            | Self::FsyncDir
            | Self::StatFs
            | Self::SetXattr
            | Self::GetXattr
            | Self::ListXattr
            | Self::RemoveXattr => WaitsFor::Master,
        }
    }
}

/// The metrics of each operation.
pub struct OpMetrics {
    by_op: Vec<(IntCounter, Histogram)>,
    errors: prometheus::IntCounterVec,
}

impl OpMetrics {
    /// Looks them all up.
    pub fn new(metrics: &Metrics) -> Self {
        let by_op = Op::ALL.iter().map(|(_, word)| {
            (metrics.requests.with_label_values(&[word]), metrics.request_seconds.with_label_values(&[word]))
        });
        Self { by_op: by_op.collect(), errors: metrics.request_errors.clone() }
    }

    /// Counts one that was answered, with its errno if it failed.
    pub fn count(&self, op: Op, begun: Instant, errno: Option<i32>) {
        let (requests, seconds) = &self.by_op[op as usize];
        requests.inc();
        seconds.observe(begun.elapsed().as_secs_f64());
        if let Some(errno) = errno {
            let name = nix::errno::Errno::from_raw(errno);
            self.errors.with_label_values(&[op.word(), &format!("{name:?}")]).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_has_its_own_metrics() {
        let metrics = Metrics::new();
        let ops = OpMetrics::new(&metrics);
        for (at, (op, _)) in Op::ALL.iter().enumerate() {
            assert_eq!(*op as usize, at);
        }
        ops.count(Op::Mkdir, Instant::now(), Some(libc::EEXIST));
        let text = prometheus::TextEncoder::new().encode_to_string(&metrics.registry.gather()).unwrap();
        assert!(text.contains("dfs_mount_requests_total{op=\"mkdir\"} 1"), "{text}");
        assert!(text.contains("dfs_mount_request_errors_total{errno=\"EEXIST\",op=\"mkdir\"} 1"), "{text}");
    }
}
