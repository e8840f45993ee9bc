//! Gives a finished output its final name.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::OutputDir;
use super::earlier::EarlierResult;
use super::lock::lock;
use super::names::parent_of;
use super::remove::remove_tree;
use super::rename::{
    in_the_way, rename_to_free, replace, sync_directories, sync_directory, unmoved,
};
use super::unfinished::unfinished;
use super::unmovable::{Unreplaced, replace_by_removal};
use crate::error::{Error, Kind, Result};
use crate::manifest::MANIFEST_FILE;

impl OutputDir {
    /// Writes the manifest, flushes everything, and gives the directory its final name.
    ///
    /// # Errors
    /// [`Kind::Io`], which says where the result is if there is one.
    pub fn commit(mut self) -> Result<()> {
        self.check_staging()?;
        self.staging.write(MANIFEST_FILE, self.manifest.to_text().as_bytes())?;
        let kept = self.modes.as_ref().map_or(Ok(()), |modes| modes.give(self.path()));
        let flushed = kept.and_then(|()| sync_directories(self.path()));
        flushed.map_err(|e| Error::io("cannot flush the finished output", &self.target, e))?;
        // Once it is off the list, a signal no longer removes it. If it wasn't listed, removal has
        // begun.
        let mut unfinished = unfinished(&self.target)?;
        if !unfinished.remove(self.path()) {
            return Err(Error::new(Kind::Stopped, "stopped").file(&self.target));
        }
        // From here on nothing is removed: the result must not be lost.
        self.committed = true;
        let moved = self.move_to_target()?;
        drop(unfinished);
        let place = moved.as_ref().map_or(&self.target, |elsewhere| &elsewhere.place);
        sync_directory(&parent_of(place)).map_err(|e| unconfirmed(place, e))?;
        match moved {
            None => Ok(()),
            Some(Elsewhere { place, why }) => Err(in_the_way(&self.target, &place, why)),
        }
    }

    /// Gives the finished directory its final name. If that is taken by something that can't be
    /// replaced, it gets a free name next to it, which is returned.
    fn move_to_target(&self) -> Result<Option<Elsewhere>> {
        let mut left = Unreplaced { new: self.path().to_owned(), why: None };
        // Hours may have passed since the earlier result was checked.
        if let Some(found) = self.replaced.as_ref().filter(|found| found.is_still(&self.target)) {
            match self.replace(found)? {
                None => return Ok(None),
                Some(unreplaced) => left = unreplaced,
            }
        }
        let Unreplaced { new, why } = left;
        let moved =
            rename_to_free(&new, &self.target).map_err(|e| unmoved(&new, &self.target, e))?;
        Ok(moved.map(|place| Elsewhere { place, why }))
    }

    /// Replaces the earlier result `found` by the finished directory. If that can't be replaced,
    /// returns where the new one is, and why.
    ///
    /// # Errors
    /// [`Kind::Io`] if the new one is in its place, but the earlier one can't be removed.
    fn replace(&self, found: &EarlierResult) -> Result<Option<Unreplaced>> {
        // It is removed under a hidden name. The lock keeps a run that begins there from taking it
        // for its own.
        let earlier = File::open(&self.target);
        let replaced = earlier.and_then(|earlier| {
            lock(&self.target, &earlier).map_err(|busy| io::Error::other(busy.briefly()))?;
            // The lock is held until it is removed.
            Ok((replace(self.path(), &self.target)?, earlier))
        });
        match replaced {
            Ok((aside, _locked)) => remove_tree(&aside).map(|()| None).map_err(|e| {
                let what = format!(
                    "the result is {}; the one before it can't be removed",
                    self.target.display()
                );
                Error::io(&what, &aside, e)
            }),
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                Ok(replace_by_removal(self.path(), &self.target, found.names()).err())
            }
            Err(why) => Ok(Some(Unreplaced { new: self.path().to_owned(), why: Some(why) })),
        }
    }
}

/// The place of a finished directory that didn't get its final name, and the reason.
struct Elsewhere {
    place: PathBuf,
    why: Option<io::Error>,
}

/// The error for a result that is complete at `place`, if the disk doesn't confirm its name.
pub(super) fn unconfirmed(place: &Path, error: io::Error) -> Error {
    let what = "the result is complete and in its place, but the disk doesn't confirm its name: it may be lost if the power fails now";
    Error::new(Kind::Io, what).file(place).source(error).remedy(
        "run sync, then moe-convert verify on it; nothing has to be made again unless that fails",
    )
}
