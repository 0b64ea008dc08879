//! What logs and metrics call the requests of mounts.

use super::pb::meta_request;

/// Returns the name that logs and metrics have for a request.
pub fn op_name(body: &meta_request::Body) -> &'static str {
    use meta_request::Body;
    match body {
        Body::SessionOpen(_) => "session_open",
        Body::SessionReclaim(_) => "session_reclaim",
        Body::SessionClose(_) => "session_close",
        Body::Ping(_) => "ping",
        Body::Sync(_) => "sync",
        Body::Lookup(_) => "lookup",
        Body::GetAttr(_) => "get_attr",
        Body::SetAttr(_) => "set_attr",
        Body::Make(_) => "make",
        Body::Unlink(_) => "unlink",
        Body::Rmdir(_) => "rmdir",
        Body::Rename(_) => "rename",
        Body::Link(_) => "link",
        Body::ReadLink(_) => "read_link",
        Body::Open(_) => "open",
        Body::Release(_) => "release",
        Body::ReadDir(_) => "read_dir",
        Body::StatFs(_) => "stat_fs",
        Body::SetXattr(_) => "set_xattr",
        Body::GetXattr(_) => "get_xattr",
        Body::ListXattr(_) => "list_xattr",
        Body::RemoveXattr(_) => "remove_xattr",
        Body::GetChunks(_) => "get_chunks",
        Body::AllocateChunks(_) => "allocate_chunks",
        Body::CommitWrite(_) => "commit_write",
        Body::GetInline(_) => "get_inline",
        Body::PunchChunks(_) => "punch_chunks",
        Body::ReportBadReplica(_) => "report_bad_replica",
    }
}
