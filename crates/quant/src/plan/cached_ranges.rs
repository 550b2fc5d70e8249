//! Ranges that are computed once, however many plans ask for them.

use std::{collections::HashMap, sync::Mutex};

use crate::{
    calibrate::{CalibrateError, Calibrator, RangeGoal},
    plan::Ranges,
};

/// Remembers every range that was asked for.
pub struct CachedRanges<'a> {
    ranges: &'a (dyn Ranges + Sync),
    seen: Mutex<HashMap<String, (f32, f32)>>,
}

impl<'a> CachedRanges<'a> {
    /// Of these.
    pub fn new(ranges: &'a (dyn Ranges + Sync)) -> Self {
        Self { ranges, seen: Mutex::default() }
    }
}

impl Ranges for CachedRanges<'_> {
    fn contains(&self, tensor: &str) -> bool {
        self.ranges.contains(tensor)
    }

    fn range(
        &self,
        tensor: &str,
        calibrator: &Calibrator,
        goal: &RangeGoal,
    ) -> Result<(f32, f32), CalibrateError> {
        let key = format!(
            "{tensor} {} {} {} {goal:?}",
            calibrator.def.name, calibrator.percentile, calibrator.averaging_constant
        );
        let known = self.seen.lock().expect("no panic while the lock is held").get(&key).copied();
        if let Some(range) = known {
            return Ok(range);
        }
        let range = self.ranges.range(tensor, calibrator, goal)?;
        self.seen.lock().expect("no panic while the lock is held").insert(key, range);
        Ok(range)
    }
}
