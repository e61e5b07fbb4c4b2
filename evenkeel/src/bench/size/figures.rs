//! Figures, their goals, and both as text and JSON. Pure.

use crate::display::table;
use serde::Serialize;

/// The goal of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Bar {
    /// Whether `value` meets the goal.
    pub fn met(self, value: f64) -> bool {
        match self {
            Bar::AtLeast(bar) => value >= bar,
            Bar::AtMost(bar) => value <= bar,
        }
    }

    fn text(self) -> String {
        match self {
            Bar::AtLeast(bar) => format!(">= {bar}"),
            Bar::AtMost(bar) => format!("<= {bar}"),
        }
    }
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// The measured quantity.
    pub what: String,
    /// The size of the data, or the system.
    pub at: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The same figure of the reference, if there is one.
    pub beside: Option<f64>,
    /// The goal of the figure, or of its ratio to the reference's if `of_ratio`.
    pub bar: Option<Bar>,
    /// Whether the goal is for the ratio to `beside`.
    pub of_ratio: bool,
}

impl Figure {
    /// A figure without a reference.
    pub fn new(what: impl Into<String>, at: impl Into<String>, value: f64, unit: &'static str) -> Figure {
        Figure { what: what.into(), at: at.into(), value, unit, beside: None, bar: None, of_ratio: false }
    }

    /// Sets the goal.
    pub fn bar(self, bar: Bar) -> Figure {
        Figure { bar: Some(bar), ..self }
    }

    /// Sets the reference's figure, and the goal of the ratio.
    pub fn beside(self, other: f64, bar: Option<Bar>) -> Figure {
        Figure { beside: Some(other), bar, of_ratio: true, ..self }
    }

    /// The ratio to the reference's figure.
    pub fn ratio(&self) -> Option<f64> {
        self.beside.filter(|other| *other > 0.0).map(|other| self.value / other)
    }

    /// Whether the goal is met; `None` without a goal.
    pub fn met(&self) -> Option<bool> {
        let held = if self.of_ratio { self.ratio().unwrap_or(f64::NAN) } else { self.value };
        self.bar.map(|bar| bar.met(held))
    }
}

/// The figures as JSON.
pub fn json(figures: &[Figure]) -> Result<String, serde_json::Error> {
    let all: Vec<serde_json::Value> = figures
        .iter()
        .map(|figure| {
            let mut value = serde_json::to_value(figure)?;
            value["ratio"] = serde_json::to_value(figure.ratio())?;
            value["met"] = serde_json::to_value(figure.met())?;
            Ok(value)
        })
        .collect::<Result<_, serde_json::Error>>()?;
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

/// The figures as a table.
pub fn render(figures: &[Figure]) -> String {
    let number = |value: f64| if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    let row = |figure: &Figure| {
        vec![
            figure.what.clone(),
            figure.at.clone(),
            number(figure.value),
            figure.unit.to_string(),
            figure.beside.map_or("-".into(), number),
            figure.ratio().map_or("-".into(), |ratio| format!("{ratio:.2}")),
            figure.bar.map_or("-".into(), Bar::text),
            match figure.met() {
                None => "-".into(),
                Some(true) => "met".into(),
                Some(false) => "MISSED".into(),
            },
        ]
    };
    let heading = ["what", "at", ">evenkeel", "unit", ">postgresql", ">ratio", ">bar", "met"];
    table(&heading, &figures.iter().map(row).collect::<Vec<_>>())
}

/// The least mean over any `window` consecutive values; the mean of all if there are fewer.
pub fn least_window(values: &[f64], window: usize) -> f64 {
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    if values.len() <= window {
        return mean(values);
    }
    values.windows(window).map(mean).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_goal_is_for_the_ratio_only_with_a_reference() {
        let alone = Figure::new("restart", "1 GB", 12.0, "s").bar(Bar::AtMost(10.0));
        assert_eq!((alone.met(), alone.ratio()), (Some(false), None));
        let beside = Figure::new("statements", "1 GB", 700.0, "/s").beside(1_000.0, Some(Bar::AtLeast(0.6)));
        assert_eq!(beside.met(), Some(true));
        let nothing = Figure::new("statements", "1 GB", 700.0, "/s").beside(0.0, Some(Bar::AtLeast(0.6)));
        assert_eq!(nothing.met(), Some(false), "a comparison with nothing is not met");
        let text = render(&[alone.clone(), beside]);
        assert!(text.contains("MISSED") && text.contains("0.70"), "{text}");
        assert!(json(&[alone]).unwrap().contains("\"met\": false"));
    }

    #[test]
    fn the_worst_window_is_found() {
        assert_eq!(least_window(&[9.0, 1.0, 3.0, 9.0], 2), 2.0);
        assert_eq!(least_window(&[4.0, 6.0], 10), 5.0);
    }
}
