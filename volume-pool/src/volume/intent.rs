//! Before the first write to a section since `changed` was last written down, that it may be written is
//! made to last: so a crash can leave `changed` behind, and never unnoticed. One sync per section, none for
//! the writes that follow.

use std::ops::Range;

use image::Result;

use super::Volume;

impl Volume {
    /// Returns once the intent to write to these sections is on disk.
    pub(super) async fn intend(&self, sections: Range<u64>) -> Result<()> {
        if self.intended.borrow().all(sections.clone()) {
            return Ok(());
        }
        self.maps.borrow_mut().intent.set(sections.clone());
        self.intending.run(async || self.write_intent().await).await
    }

    async fn write_intent(&self) -> Result<()> {
        let (pages, intent) = {
            let mut maps = self.maps.borrow_mut();
            (maps.take_intent(), maps.intent.clone())
        };
        self.write_pages(pages).await?;
        self.intended.borrow_mut().merge(&intent);
        Ok(())
    }
}
