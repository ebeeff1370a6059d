//! How RocksDB is set up: what it must never forget or accept, and how much memory it may take.
//!
//! Several nodes run on one machine in development and in tests, so an idle store must be small: memtables of all
//! tables share one budget, blocks share one cache, open files are bounded.

use std::path::PathBuf;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType,
    DBRecoveryMode, LogLevel, Options, ReadOptions, WriteBufferManager, WriteOptions,
};

use super::Table;

/// Where a store is, and what it may use.
#[derive(Debug, Clone)]
pub struct Settings {
    pub folder: PathBuf,
    pub block_cache_bytes: usize,
    /// Of all tables together; a table is flushed early when the sum reaches this.
    pub memtable_bytes: usize,
    /// New data is refused when less than this is free. `None`: the larger of 1 GiB and 5 % of the disk.
    pub reserve_bytes: Option<u64>,
}

impl Settings {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, block_cache_bytes: 64 << 20, memtable_bytes: 64 << 20, reserve_bytes: None }
    }
}

/// What a store holds open at the most. More are closed and opened again as needed: a node has some files a gigabyte, and a process
/// some thousand handles.
pub const OPEN_FILES_MAX: u16 = 512;
/// What a start replays at the most. Beyond it the oldest memtables are flushed so that old logs can go.
const WAL_BYTES_MAX: u64 = 256 << 20;
const MEMTABLE_BYTES_MAX: usize = 16 << 20;
/// What a memtable takes at its first record: seven tables, mostly idle.
const ARENA_BYTES: usize = 256 << 10;
/// A part of an index or a filter: as large as a block of data.
const METADATA_BLOCK_BYTES: usize = 4 << 10;
/// RocksDB's own log of what it did.
const INFO_LOG_BYTES_MAX: usize = 8 << 20;
const INFO_LOGS_MAX: usize = 4;

pub(super) fn database(settings: &Settings) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // The default drops everything after a flipped bit without a word; this opens only with a torn tail, which an
    // ordinary crash leaves. What a truncation loses is found by the fence.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_paranoid_checks(true);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_open_files(OPEN_FILES_MAX.into());
    options.set_max_background_jobs(2);
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager(
        settings.memtable_bytes,
        false,
    ));
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_keep_log_file_num(INFO_LOGS_MAX);
    // What is written gathers in memory and goes to the file with the next fsync: nothing counts before that anyway.
    options.set_manual_wal_flush(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

pub(super) fn tables(settings: &Settings) -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(settings.block_cache_bytes);
    let describe = |table| ColumnFamilyDescriptor::new(name(table), family(table, &cache));
    Table::ALL.into_iter().map(describe).collect()
}

fn family(table: Table, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    // Index and filters count against the cache, or they grow with the data. In parts, because whole ones of a large file, a
    // megabyte each, do not fit a shard of the cache: each look-up would read them from the disk again.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_metadata_block_size(METADATA_BLOCK_BYTES);
    blocks.set_pin_top_level_index_and_filter(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_format_version(5);
    // Where keys are looked up that are mostly not there: without it each command sent would unpack blocks of the mailbox to
    // find that its id is new.
    if matches!(table, Table::Device | Table::Twin | Table::Mailbox) {
        blocks.set_bloom_filter(10.0, false);
    }
    let mut options = file(table);
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(MEMTABLE_BYTES_MAX);
    options.set_arena_block_size(ARENA_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_level_compaction_dynamic_level_bytes(true);
    options
}

/// How the files of a table are written, also those of a snapshot that is received.
pub(super) fn file(table: Table) -> Options {
    let mut options = Options::default();
    if table == Table::Log {
        // Most of it is purged before it is ever compacted.
        options.set_compression_type(DBCompressionType::None);
    } else {
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_bottommost_compression_type(DBCompressionType::Zstd);
    }
    options
}

/// Into RocksDB's log, not fsynced: the commit thread does that for everybody.
pub(super) fn unsynced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(false);
    options.disable_wal(false);
    options
}

pub(super) fn synced() -> WriteOptions {
    let mut options = unsynced();
    options.set_sync(true);
    options
}

pub(super) fn checked() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options
}

/// The name of a table's column family. It is on disk.
pub(super) fn name(table: Table) -> &'static str {
    match table {
        Table::Log => "log",
        Table::Group => "group",
        Table::Device => "device",
        Table::Twin => "twin",
        Table::Stream => "stream",
        Table::History => "history",
        Table::Mailbox => "mailbox",
    }
}
