//! Merging small tables. Each sync writes one, however little there was to write, and since keys of the history ascend
//! nothing else would ever merge them: without this, the number of files would grow with the number of syncs.

use rocksdb::{BottommostLevelCompaction, CompactOptions, LiveFile};

use crate::bucket::Bucket;
use crate::engine::{Engine, TABLE_BYTES};

/// Neighbouring small tables that are merged once there are this many.
const SMALL_TABLES_MAX: usize = 64;
/// A table below this is small.
const SMALL_TABLE_BYTES: u64 = TABLE_BYTES / 8;

/// Merges the newest run of small tables of the history when it has grown long. Returns the number of tables merged.
/// Cost: at most the bytes of that run, so each record is rewritten about once in its life.
pub(crate) fn tidy(engine: &Engine) -> Result<u64, rocksdb::Error> {
    let metadata = engine.db().get_column_family_metadata_cf(engine.family(Bucket::Kv));
    if metadata.file_count < SMALL_TABLES_MAX {
        return Ok(0);
    }
    let run = newest_small_run(engine.db().live_files()?);
    if run.len() < SMALL_TABLES_MAX {
        return Ok(0);
    }
    let mut options = CompactOptions::default();
    options.set_exclusive_manual_compaction(false);
    options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
    let start = run.last().and_then(|table| table.start_key.clone());
    let end = run.first().and_then(|table| table.end_key.clone());
    engine.db().compact_range_cf_opt(engine.family(Bucket::Kv), start, end, &options);
    Ok(run.len() as u64)
}

/// The tables of the history from the highest keys down to the first big one, highest first.
fn newest_small_run(tables: Vec<LiveFile>) -> Vec<LiveFile> {
    let mut tables: Vec<LiveFile> =
        tables.into_iter().filter(|table| table.column_family_name == Bucket::Kv.name()).collect();
    tables.sort_by(|left, right| right.end_key.cmp(&left.end_key));
    tables.into_iter().take_while(|table| (table.size as u64) < SMALL_TABLE_BYTES).collect()
}
