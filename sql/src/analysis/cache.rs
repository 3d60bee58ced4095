//! The bounded cache of analyses, by text.

use std::collections::HashMap;
use std::sync::Arc;

use super::TextAnalysis;

/// A generation ends at this many texts ...
const GENERATION_TEXTS_MAX: usize = 4096;
/// ... or this many bytes of texts, with what runs in their place.
const GENERATION_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Two generations: what was used since the present one began survives its end. So the cache is bounded, and
/// a look-up costs one hash in the common case.
#[derive(Default)]
pub(super) struct Cache {
    young: HashMap<Arc<str>, Arc<TextAnalysis>>,
    old: HashMap<Arc<str>, Arc<TextAnalysis>>,
    young_bytes: usize,
}

impl Cache {
    pub(super) fn get(&mut self, text: &str) -> Option<Arc<TextAnalysis>> {
        if let Some(found) = self.young.get(text) {
            return Some(Arc::clone(found));
        }
        let (key, found) = self.old.remove_entry(text)?;
        self.insert(key, Arc::clone(&found));
        Some(found)
    }

    pub(super) fn insert(&mut self, text: Arc<str>, analysis: Arc<TextAnalysis>) {
        let bytes = text.len() + analysis.executable_bytes();
        if self.young.len() >= GENERATION_TEXTS_MAX || self.young_bytes + bytes > GENERATION_BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        self.young.insert(text, analysis);
    }
}
