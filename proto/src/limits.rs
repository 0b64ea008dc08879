//! Bounds that both ends of a wire rely on. Each is checked before anything is allocated.

/// Bytes in a unit: the grain of checksums, and of a page of the kernel.
pub const UNIT_SIZE: u32 = 4096;
/// log2 of the bytes in a chunk, unless a file's layout says otherwise: 64 MiB.
pub const CHUNK_SIZE_LOG2: u32 = 26;
/// Bytes in a chunk of the default layout.
pub const CHUNK_SIZE: u64 = 1 << CHUNK_SIZE_LOG2;
/// Replicas of a chunk of the default layout.
pub const REPLICAS: u32 = 3;
/// Most bytes of one read or write on the data plane.
pub const DATA_BYTES_MAX: u32 = 1 << 20;
/// Most bytes of a name in a directory (NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;
/// Most bytes of a symlink's target (PATH_MAX without the final NUL).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Most bytes of an extended attribute's value (XATTR_SIZE_MAX).
pub const XATTR_BYTES_MAX: usize = 65_536;
/// Most bytes of an extended attribute's name (XATTR_NAME_MAX).
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Most bytes of the names of all extended attributes of an inode, NUL-terminated (XATTR_LIST_MAX).
pub const XATTR_LIST_BYTES_MAX: usize = 65_536;
/// Most names of one inode, so that a 32-bit count never wraps.
pub const LINKS_MAX: u32 = 1_000_000;
/// Largest file: the largest offset that fits `loff_t`, cut to what 2^32 chunks of 64 MiB hold.
pub const FILE_BYTES_MAX: u64 = 1 << 58;
/// Most bytes of a file that is kept in its inode record.
pub const INLINE_BYTES_MAX: u64 = 16_384;
/// Most entries in one page of a directory listing.
pub const LISTING_ENTRIES_MAX: u32 = 1_000;
/// Most chunk locations in one reply.
pub const LOCATIONS_MAX: u32 = 256;
/// Most bytes of a frame's head.
pub const HEAD_BYTES_MAX: u32 = 1 << 20;
/// Most bytes of a frame's payload.
pub const PAYLOAD_BYTES_MAX: u32 = DATA_BYTES_MAX + 64 * 1024;
