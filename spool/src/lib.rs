//! Results that are larger than memory shall hold: kept in files without names, cut into chunks, and digested on the way.
//!
//! Voters keep here what their servers answered; proxies keep here what must be read to its end before the first byte of
//! it may be released. Everything blocks: callers run it where that does no harm.

mod directory;
mod sorted;
mod stored;

pub use directory::{SpoolDirectory, SpoolFile};
pub use sorted::SortedHashes;
pub use stored::{ChunkWriter, StoredResult};
