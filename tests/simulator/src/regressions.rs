//! Seeds that once failed: every test run repeats them, with the options that they had then.

use crate::options::Options;

/// Those of a protocol: one line of options each, as a run prints them; `#` begins a comment.
pub fn of(protocol: &str) -> &'static str {
    match protocol {
        "minbft" => include_str!("../regressions/minbft.txt"),
        "pbft" => include_str!("../regressions/pbft.txt"),
        _ => "",
    }
}

/// The options of a line.
pub fn parse(line: &str) -> Result<Options, String> {
    let mut parts = line.split_whitespace();
    let seed = parts.next().and_then(|part| part.strip_prefix("seed=")?.parse().ok());
    let seed = seed.ok_or_else(|| format!("a regression begins with its seed: {line}"))?;
    // Every option stands in the line: what is drawn here is overwritten. Options that came later are off.
    let mut options = Options::draw(seed, |faults| 2 * faults + 2);
    options.primary_cuts = 0;
    for part in parts {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("{part} is no option"))?;
        options.set(name, value)?;
    }
    Ok(options)
}

/// All regressions of a protocol.
pub fn options(protocol: &str) -> Result<Vec<Options>, String> {
    let lines = of(protocol).lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(parse)
        .collect()
}
