//! One file of a simulated disk: what its pages hold in the cache and on the medium.

use super::*;

impl File {
    pub(super) fn room(&self) -> u64 {
        let reserved_pages = self.reserved.div_ceil(PAGE_BYTES as u64);
        (1 + reserved_pages.max(self.pages.len() as u64)) * PAGE_BYTES as u64
    }

    pub(super) fn grows_by(&self, offset: u64, length: usize) -> u64 {
        let end = offset + length as u64;
        let pages = (offset / PAGE_BYTES as u64..end.div_ceil(PAGE_BYTES as u64))
            .filter(|page| page * PAGE_BYTES as u64 >= self.reserved && !self.pages.contains_key(page));
        pages.count() as u64 * PAGE_BYTES as u64
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) {
        let mut at = 0;
        while at < buffer.len() {
            let position = offset + at as u64;
            let within = (position % PAGE_BYTES as u64) as usize;
            let count = (PAGE_BYTES - within).min(buffer.len() - at);
            let target = &mut buffer[at..at + count];
            match self.pages.get(&(position / PAGE_BYTES as u64)) {
                Some(page) => target.copy_from_slice(&page[within..within + count]),
                None => target.fill(0),
            }
            at += count;
        }
    }

    pub(super) fn mark(&mut self, page: u64, from: usize, to: usize) {
        let before = self.pages.get(&page);
        let (_, marks) = self.stable.entry(page).or_insert_with(|| (before.cloned(), SectorMarks::default()));
        for sector in from / SECTOR_BYTES..to.div_ceil(SECTOR_BYTES) {
            marks.dirty |= 1 << sector;
            marks.ghost &= !(1 << sector);
        }
    }

    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            let (page, within) = (position / PAGE_BYTES as u64, (position % PAGE_BYTES as u64) as usize);
            let count = (PAGE_BYTES - within).min(data.len() - at);
            self.mark(page, within, within + count);
            self.latent.remove(&page);
            let content = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE_BYTES]));
            content[within..within + count].copy_from_slice(&data[at..at + count]);
            at += count;
        }
        self.length = self.length.max(offset + data.len() as u64);
    }

    pub(super) fn punch(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize);
            let count = (PAGE_BYTES - within).min((end - at) as usize);
            if self.pages.contains_key(&page) {
                self.mark(page, within, within + count);
                if count == PAGE_BYTES {
                    self.pages.remove(&page);
                } else if let Some(content) = self.pages.get_mut(&page) {
                    content[within..within + count].fill(0);
                }
            }
            self.latent.remove(&page);
            at += count as u64;
        }
    }

    pub(super) fn sync(&mut self) {
        self.stable_length = self.length;
        let pages = &self.pages;
        self.stable.retain(|page, (stable, marks)| {
            if marks.ghost != 0 {
                take_sectors(stable, pages.get(page), marks.dirty);
                marks.dirty = 0;
            }
            marks.ghost != 0
        });
    }

    /// Some of what is dirty reaches the medium.
    pub(super) fn write_back(&mut self, rng: &mut Random) {
        let pages = &self.pages;
        for (page, (stable, marks)) in &mut self.stable {
            let sectors = marks.dirty & rng.next() as u8;
            take_sectors(stable, pages.get(page), sectors);
            marks.dirty &= !sectors;
        }
        self.stable.retain(|_, (_, marks)| marks.dirty != 0 || marks.ghost != 0);
    }

    /// A sync fails: some sectors reached the medium, and all are taken for clean. Some pages are read anew from it.
    pub(super) fn fail_sync(&mut self, rng: &mut Random) {
        self.write_back(rng);
        for (_, marks) in self.stable.values_mut() {
            marks.ghost |= marks.dirty;
            marks.dirty = 0;
        }
        if rng.in_a_million(500_000) {
            for (page, (stable, _)) in std::mem::take(&mut self.stable) {
                put_page(&mut self.pages, page, stable);
            }
        }
    }

    pub(super) fn power_cut(&mut self, rng: &mut Random, keep_ppm: u64, grows: bool) {
        for (page, (mut stable, marks)) in std::mem::take(&mut self.stable) {
            let mut sectors = 0;
            for sector in 0..SECTORS {
                if marks.dirty & (1 << sector) != 0 && rng.in_a_million(keep_ppm) {
                    sectors |= 1 << sector;
                }
            }
            take_sectors(&mut stable, self.pages.get(&page), sectors);
            put_page(&mut self.pages, page, stable);
        }
        if !grows {
            self.length = self.stable_length;
            let first_beyond = self.length.div_ceil(PAGE_BYTES as u64);
            self.pages.retain(|page, _| *page < first_beyond);
            self.reserved = self.reserved.min(self.length);
        }
        self.stable_length = self.length;
    }

    pub(super) fn next_data(&self, from: u64, end: u64) -> Option<(u64, u64)> {
        let size = PAGE_BYTES as u64;
        let (first, _) = self.pages.range(from / size..end.div_ceil(size)).next()?;
        let mut stop = *first;
        while self.pages.contains_key(&stop) && stop * size < end {
            stop += 1;
        }
        Some(((first * size).max(from), (stop * size).min(end)))
    }
}

/// Copies sectors of `current` (`None`: a hole) into what is on the medium.
pub(super) fn take_sectors(stable: &mut Option<Page>, current: Option<&Page>, sectors: u8) {
    if sectors == 0 {
        return;
    }
    if sectors == u8::MAX {
        *stable = current.cloned();
        return;
    }
    let target = stable.get_or_insert_with(|| Box::new([0; PAGE_BYTES]));
    for sector in (0..SECTORS).filter(|sector| sectors & (1 << sector) != 0) {
        let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
        match current {
            Some(page) => target[range.clone()].copy_from_slice(&page[range]),
            None => target[range].fill(0),
        }
    }
}

pub(super) fn put_page(pages: &mut BTreeMap<u64, Page>, page: u64, content: Option<Page>) {
    match content {
        Some(content) => pages.insert(page, content),
        None => pages.remove(&page),
    };
}
