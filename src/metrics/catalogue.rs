//! How metrics are declared and written: each one by its type, its name and its help, which documents the field too.

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// One metric of a catalogue.
pub struct Entry<'a> {
    /// The name behind `cdrelay_`. Entries of one name, with different labels, are one family.
    pub name: &'static str,
    /// One sentence, without a full stop.
    pub help: &'static str,
    /// The label, if it is always the same.
    pub label: Option<(&'static str, &'static str)>,
    /// The values.
    pub metric: &'a dyn EncodeMetric,
}

/// A struct of metrics.
pub trait Catalogue: fmt::Debug + Send + Sync + 'static {
    /// All of them.
    fn entries(&self) -> Vec<Entry<'_>>;
}

/// Declares a struct of metrics:
/// - `field: Type = "name", "Help";` is one metric.
/// - `"name" by "label", "Help": field = "value", …;` are counters with the values of a label.
/// - `..field: Type;` is a struct of further metrics.
macro_rules! catalogue {
    (
        $(#[$meta:meta])*
        $type:ident {
            $($field:ident: $metric:ty = $name:literal, $help:literal;)*
            $($family:literal by $label:literal, $family_help:literal: $($counter:ident = $value:literal),+;)*
            $(..$part:ident: $part_type:ty;)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default)]
        pub struct $type {
            $(#[doc = $help] pub $field: $metric,)*
            $($(#[doc = concat!($family_help, ": ", $label, " `", $value, "`")] pub $counter: Counter,)+)*
            $(#[doc = concat!("See [`", stringify!($part_type), "`].")] pub $part: $part_type,)*
        }

        impl $crate::metrics::Catalogue for $type {
            fn entries(&self) -> Vec<$crate::metrics::Entry<'_>> {
                use $crate::metrics::Entry;
                let own = [
                    $(Entry { name: $name, help: $help, label: None, metric: &self.$field },)*
                    $($(Entry {
                        name: $family,
                        help: $family_help,
                        label: Some(($label, $value)),
                        metric: &self.$counter,
                    },)+)*
                ];
                own.into_iter()$(.chain(self.$part.entries()))*.collect()
            }
        }
    };
}
pub(crate) use catalogue;

/// Writes catalogues of the process, and one catalogue of each sink, which has the sink's name as a label.
#[derive(Debug)]
pub struct Families<S> {
    /// Those without a sink.
    pub fixed: Vec<Box<dyn Catalogue>>,
    /// By the names of the sinks.
    pub sinks: Arc<Mutex<BTreeMap<String, S>>>,
}

impl<S: Catalogue> Collector for Families<S> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sinks = self.sinks.lock();
        let fixed = self.fixed.iter().flat_map(|catalogue| catalogue.entries()).map(|entry| (None, entry));
        let of_sinks = sinks.iter().flat_map(|(sink, catalogue)| {
            catalogue.entries().into_iter().map(move |entry| (Some(("sink", sink.as_str())), entry))
        });
        let mut families: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (sink, entry) in fixed.chain(of_sinks).filter(|(_, entry)| !entry.metric.is_empty()) {
            families.entry(entry.name).or_default().push((sink, entry));
        }
        for (name, entries) in families {
            let Some((_, Entry { help, metric, .. })) = entries.first() else { continue };
            let mut family = encoder.encode_descriptor(name, &format!("{help}."), None, metric.metric_type())?;
            for (sink, entry) in &entries {
                let labels: Vec<_> = sink.iter().chain(&entry.label).copied().collect();
                if labels.is_empty() {
                    // A family has its own labels.
                    entry.metric.encode(family)?;
                    break;
                }
                entry.metric.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
