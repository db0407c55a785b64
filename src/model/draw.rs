//! Drawings of workflows, in the languages of Mermaid and Graphviz.

use std::fmt::Write;

use crate::model::job::Status;
use crate::model::need::OnFailure;

/// What is drawn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    pub(crate) name: String,
    pub(crate) spots: Vec<Spot>,
    pub(crate) lines: Vec<Line>,
}

/// A job or a stage.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub(crate) label: String,
    pub(crate) status: Option<Status>,
    pub(crate) is_stage: bool,
    /// It follows the end of the whole.
    pub(crate) is_callback: bool,
}

/// What follows what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) on_failure: OnFailure,
}

/// The colour that a status is drawn in.
const fn colour(status: Status) -> &'static str {
    match status {
        Status::Created => "#eeeeee",
        Status::Pending => "#fff3c4",
        Status::Running => "#b3d4ff",
        Status::Completed => "#b7e4c7",
        Status::Failed => "#f5b7b1",
        Status::Cancelled => "#d5d8dc",
        Status::Expired => "#f9d9a8",
    }
}

const fn word(on_failure: OnFailure) -> Option<&'static str> {
    match on_failure {
        OnFailure::Cancel => None,
        OnFailure::Fail => Some("or fails"),
        OnFailure::Continue => Some("at any end"),
    }
}

impl Graph {
    pub(crate) fn to_mermaid(&self) -> String {
        let mut text = "flowchart TD\n".to_owned();
        // Writing to a string does not fail.
        for (at, spot) in self.spots.iter().enumerate() {
            let (open, close) = match spot {
                Spot { is_stage: true, .. } => ("[[\"", "\"]]"),
                Spot { is_callback: true, .. } => ("([\"", "\"])"),
                _ => ("[\"", "\"]"),
            };
            let class = spot.status.map(|status| format!(":::{status}")).unwrap_or_default();
            let _ = writeln!(text, "    n{at}{open}{}{close}{class}", mermaid_text(&spot.label));
        }
        for line in &self.lines {
            let label = word(line.on_failure).map(|word| format!("|{word}|")).unwrap_or_default();
            let _ = writeln!(text, "    n{} -->{label} n{}", line.from, line.to);
        }
        let callbacks: Vec<usize> = (0..self.spots.len()).filter(|at| self.spots[*at].is_callback).collect();
        if !callbacks.is_empty() {
            let _ = writeln!(text, "    end_of_all((\" \"))");
            for at in self.leaves() {
                let _ = writeln!(text, "    n{at} -.-> end_of_all");
            }
            for at in callbacks {
                let _ = writeln!(text, "    end_of_all -.-> n{at}");
            }
        }
        for status in Status::ALL {
            if self.spots.iter().any(|spot| spot.status == Some(status)) {
                let _ = writeln!(text, "    classDef {status} fill:{},stroke:#666,color:#111", colour(status));
            }
        }
        text
    }

    pub(crate) fn to_dot(&self) -> String {
        let mut text = format!(
            "digraph \"{}\" {{\n    node [shape=box, style=\"rounded,filled\", fillcolor=white];\n",
            dot_text(&self.name)
        );
        for (at, spot) in self.spots.iter().enumerate() {
            let shape = match spot {
                Spot { is_stage: true, .. } => ", shape=box3d",
                Spot { is_callback: true, .. } => ", shape=oval",
                _ => "",
            };
            let fill = spot.status.map(|status| format!(", fillcolor=\"{}\", class=\"{status}\"", colour(status)));
            let fill = fill.unwrap_or_default();
            let _ = writeln!(text, "    n{at} [label=\"{}\"{shape}{fill}];", dot_text(&spot.label));
        }
        for line in &self.lines {
            let label = word(line.on_failure).map(|word| format!(" [label=\"{word}\"]")).unwrap_or_default();
            let _ = writeln!(text, "    n{} -> n{}{label};", line.from, line.to);
        }
        let callbacks: Vec<usize> = (0..self.spots.len()).filter(|at| self.spots[*at].is_callback).collect();
        if !callbacks.is_empty() {
            text.push_str("    end_of_all [shape=point];\n");
            for at in self.leaves() {
                let _ = writeln!(text, "    n{at} -> end_of_all [style=dotted];");
            }
            for at in callbacks {
                let _ = writeln!(text, "    end_of_all -> n{at} [style=dotted];");
            }
        }
        text.push_str("}\n");
        text
    }

    /// What nothing follows, callbacks apart.
    fn leaves(&self) -> Vec<usize> {
        let mut is_leaf: Vec<bool> = self.spots.iter().map(|spot| !spot.is_callback).collect();
        for line in &self.lines {
            is_leaf[line.from] = false;
        }
        (0..is_leaf.len()).filter(|at| is_leaf[*at]).collect()
    }
}

/// A text within quotes of Mermaid's: what would end it or be read as markup goes by number.
fn mermaid_text(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '#' | '<' | '>' | '&' | '\\' | '`' | ';' | '{' | '}' => {
                let _ = write!(safe, "#{};", u32::from(c));
            }
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// A text within quotes of Graphviz's.
fn dot_text(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => safe.extend(['\\', c]),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}
