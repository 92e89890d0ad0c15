//! Layers that an image on its way will need: unpacked already, and named by no image yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// What containerd calls leases: layers that are kept although no image names them. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins(Arc<Mutex<BTreeMap<String, usize>>>);

/// Keeps layers until it is dropped.
#[derive(Debug)]
pub(crate) struct Pinned {
    pins: Pins,
    layers: Vec<String>,
}

impl Pins {
    /// Keeps the layers of these chain ids for as long as the value lives.
    pub(crate) fn pin(&self, layers: &[String]) -> Pinned {
        let mut counts = self.0.lock();
        for layer in layers {
            *counts.entry(layer.clone()).or_default() += 1;
        }
        Pinned {
            pins: self.clone(),
            layers: layers.to_vec(),
        }
    }

    /// The chain ids that are kept now.
    pub(crate) fn pinned(&self) -> Vec<String> {
        self.0.lock().keys().cloned().collect()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut counts = self.pins.0.lock();
        for layer in &self.layers {
            if let Some(count) = counts.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(layer);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_kept_until_the_last_has_let_go() {
        let pins = Pins::default();
        let layers = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        let first = pins.pin(&layers(&["a", "b", "b"]));
        let second = pins.pin(&layers(&["b", "c"]));
        assert_eq!(pins.pinned(), ["a", "b", "c"]);
        drop(first);
        assert_eq!(pins.pinned(), ["b", "c"]);
        drop(second);
        assert!(pins.pinned().is_empty());
    }
}
