//! Facts about a stream, for people: what `neuzip info` shows.

use super::index::Storage;
use super::prelude::{Body, feature};
use super::stream::Stream;
use crate::model::delta::DeltaModel;
use crate::model::histogram::table_entropy;
use crate::model::{Model, PlaneMode};

/// Facts about a stream, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamInfo {
    /// `chunked`, `constant`, `reference`, `delta`, `base` or `external`.
    pub body: &'static str,
    /// Number of chunks.
    pub chunks: usize,
    /// Original bytes per chunk.
    pub chunk_bytes: usize,
    /// How the chunks are stored: `raw`, `constant`, and a description of each model in use.
    pub modes: Vec<String>,
    /// Entropy of the first coded plane's table in bits per symbol.
    pub entropy_bits: Option<f64>,
    /// Names of the features a reader needs.
    pub features: Vec<&'static str>,
}

impl Stream<'_> {
    /// Facts about the stream, for people.
    #[must_use]
    pub fn info(&self) -> StreamInfo {
        let features = feature::NAMES
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.prelude.features >> bit & 1 == 1)
            .map(|(_, &name)| name)
            .collect();
        let mut info = StreamInfo {
            body: "chunked",
            chunks: self.index.len(),
            chunk_bytes: self.chunk_bytes(),
            modes: Vec::new(),
            entropy_bits: None,
            features,
        };
        match &self.prelude.body {
            Body::Constant(_) => {
                info.body = "constant";
                info.modes.push("constant".to_owned());
            }
            Body::Reference { .. } => {
                info.body = "reference";
                info.modes.push("reference".to_owned());
            }
            Body::Base { .. } => {
                info.body = "base";
                info.modes.push("base".to_owned());
            }
            Body::External(_) => {
                info.body = "external";
                info.modes.push("external".to_owned());
            }
            Body::Chunked(chunked) => {
                if chunked.delta.is_some() {
                    info.body = "delta";
                }
                let tables = chunked.models.iter().flat_map(Model::tables);
                info.entropy_bits = tables
                    .map(|t| table_entropy(t.entries().iter().map(|e| e.frequency)))
                    .next();
                for chunk in 0..self.index.len() {
                    let mode = match self.index.storage(chunk) {
                        Storage::Raw => "raw".to_owned(),
                        Storage::Constant => "constant".to_owned(),
                        Storage::Model(model) => match (&chunked.delta, chunked.records(model)) {
                            (Some(delta), _) => describe_delta(&delta.model),
                            (_, Some(records)) => format!("records of {}", records.record_bytes()),
                            _ => describe(&chunked.models[model]),
                        },
                    };
                    if !info.modes.contains(&mode) {
                        info.modes.push(mode);
                    }
                }
            }
        }
        info
    }
}

/// `delta4`: the number of classes; `zeros` if low bits are left out.
fn describe_delta(model: &DeltaModel) -> String {
    let zeros = if model.dropped_bits > 0 { " zeros" } else { "" };
    format!("delta{}{zeros}", model.classes.len())
}

/// `rans8+raw8 scaled`: the planes from the top bits down, then what is done before them.
fn describe(model: &Model) -> String {
    let planes: Vec<String> = model
        .planes
        .iter()
        .map(|plane| match plane.mode {
            PlaneMode::Raw => format!("raw{}", plane.bits),
            PlaneMode::Constant(_) => format!("const{}", plane.bits),
            PlaneMode::Coded(_) => format!("rans{}", plane.bits),
            // The number of tables.
            PlaneMode::Contexts(ref tables) => format!("rans{}x{}", plane.bits, tables.contexts()),
        })
        .collect();
    let mut text = planes.join("+");
    if model.scaled {
        text += " scaled";
    }
    if model.trailing_zeros {
        text += " zeros";
    }
    text
}
