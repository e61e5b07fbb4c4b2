//! Tables and sizes as text. Pure.

/// A table with a heading. A column is as wide as its widest cell. A leading `>` in a heading
/// aligns its column right.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let layout = TableLayout::new(heading, rows);
    std::iter::once(layout.heading()).chain(rows.iter().map(|row| layout.line(row))).collect::<Vec<_>>().join("\n")
}

/// The columns of a table.
pub struct TableLayout {
    heading: Vec<String>,
    right: Vec<bool>,
    widths: Vec<usize>,
}

impl TableLayout {
    /// Columns that are wide enough for these rows.
    pub fn new(heading: &[&str], rows: &[Vec<String>]) -> TableLayout {
        let right: Vec<bool> = heading.iter().map(|h| h.starts_with('>')).collect();
        let heading: Vec<String> = heading.iter().map(|h| h.trim_start_matches('>').to_string()).collect();
        let mut widths: Vec<usize> = heading.iter().map(|h| h.chars().count()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        TableLayout { heading, right, widths }
    }

    /// The line of the heading.
    pub fn heading(&self) -> String {
        self.line(&self.heading)
    }

    /// The line of a row. A cell that is wider than its column shifts the cells after it.
    pub fn line(&self, cells: &[String]) -> String {
        let padded = cells.iter().zip(&self.widths).zip(&self.right).map(|((cell, width), right)| {
            let space = " ".repeat(width.saturating_sub(cell.chars().count()));
            if *right { format!("{space}{cell}") } else { format!("{cell}{space}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_string()
    }
}

/// A size in bytes, with a binary unit.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_are_aligned_right() {
        let rows = vec![vec!["a".to_string(), "1".to_string()], vec!["länger".to_string(), "100".to_string()]];
        assert_eq!(table(&["name", ">n"], &rows), "name      n\na         1\nlänger  100");
    }
}
