//! Splits Rust sources into the words that matter here (paths, macros, methods and literals),
//! however lines and braces are set.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A source file without comments and tests.
pub struct Source {
    pub path: PathBuf,
    /// Paths as they are written, one for each leaf of a `use` (`std::fs`); macros with `!`
    /// (`println!`); methods with the dot (`.exists`); and literals.
    pub words: Vec<String>,
    /// The paths that each name from a `use` in this module stands for.
    pub names: BTreeMap<String, String>,
    /// The names among them that other modules may use too.
    pub handed_on: BTreeSet<String>,
    /// Modules in files of their own that exist only for tests.
    test_modules: Vec<String>,
}

impl Source {
    /// Every source below `dir`, without files that exist only for tests.
    pub fn below(dir: &Path) -> Vec<Self> {
        let mut found = Vec::new();
        read_all(dir, &mut found);
        let of_tests: BTreeSet<PathBuf> = found.iter().flat_map(Self::files_of_tests).collect();
        found.retain(|source| !of_tests.iter().any(|path| source.path.starts_with(path)));
        found
    }

    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let stream: TokenStream =
            text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut source = Self {
            path: path.to_owned(),
            words: Vec::new(),
            names: BTreeMap::new(),
            handed_on: BTreeSet::new(),
            test_modules: Vec::new(),
        };
        source.collect(stream, "");
        source
    }

    /// The paths of the test modules that it declares: `dir/name.rs`, and `dir/name` for what lies
    /// below.
    fn files_of_tests(&self) -> Vec<PathBuf> {
        let stem = self.path.file_stem().unwrap();
        let owns_dir = ["mod", "lib", "main"].iter().any(|name| stem == *name);
        let dir = if owns_dir {
            self.path.parent().unwrap().to_owned()
        } else {
            self.path.with_extension("")
        };
        self.test_modules
            .iter()
            .flat_map(|name| [dir.join(format!("{name}.rs")), dir.join(name)])
            .collect()
    }

    /// Adds the words of `stream`, in which paths begin with `prefix`.
    fn collect(&mut self, stream: TokenStream, prefix: &str) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        while at < trees.len() {
            if let Some(attribute) = attribute(&trees[at..]) {
                at += 2;
                if attribute.starts_with("cfg (test)") || attribute.starts_with("cfg(test)") {
                    at += self.skip_item(&trees[at..]);
                } else if !attribute.starts_with("doc") {
                    self.collect(attribute.parse().unwrap(), "");
                }
                continue;
            }
            self.note_use(&trees, at);
            at += match &trees[at] {
                TokenTree::Ident(_) => self.path(&trees, at, prefix),
                TokenTree::Literal(literal) => {
                    self.words.push(literal.to_string());
                    1
                }
                TokenTree::Group(group) => {
                    self.collect(group.stream(), "");
                    1
                }
                TokenTree::Punct(_) => 1,
            };
        }
    }

    /// Stores the names of a `use` that begins at `at`.
    fn note_use(&mut self, trees: &[TokenTree], at: usize) {
        if !matches!(&trees[at], TokenTree::Ident(word) if word == "use") {
            return;
        }
        let end = trees[at..].iter().position(|tree| is_punct(tree, ';'));
        let leaves = leaves(&trees[at + 1..end.map_or(trees.len(), |end| at + end)], "");
        let before = match &trees[..at] {
            [.., word, TokenTree::Group(_)] => Some(word),
            [.., word] => Some(word),
            [] => None,
        };
        let is_public = matches!(before, Some(TokenTree::Ident(word)) if word == "pub");
        for (name, path) in leaves {
            if is_public {
                self.handed_on.insert(path.clone());
            }
            self.names.insert(name, path);
        }
    }

    /// Adds the path that begins at `at`, and returns its number of tokens.
    fn path(&mut self, trees: &[TokenTree], at: usize, prefix: &str) -> usize {
        let is_method = at > 0 && is_punct(&trees[at - 1], '.');
        let mut path = format!("{}{prefix}{}", if is_method { "." } else { "" }, trees[at]);
        let mut next = at + 1;
        while next + 2 < trees.len() + 1 && is_colons(&trees[next..]) {
            match trees.get(next + 2) {
                Some(TokenTree::Ident(name)) => {
                    path = format!("{path}::{name}");
                    next += 3;
                }
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    self.collect(group.stream(), &format!("{path}::"));
                    return next + 3 - at;
                }
                _ => break,
            }
        }
        if trees.get(next).is_some_and(|tree| is_punct(tree, '!'))
            && matches!(trees.get(next + 1), Some(TokenTree::Group(_)))
        {
            path.push('!');
        }
        self.words.push(path);
        next - at
    }

    /// The number of tokens of the item that begins here, up to its braces or semicolon.
    fn skip_item(&mut self, trees: &[TokenTree]) -> usize {
        let ends = |tree: &TokenTree| match tree {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            tree => is_punct(tree, ';') || is_punct(tree, ','),
        };
        let end = trees.iter().position(ends).unwrap_or(trees.len().saturating_sub(1));
        if let [.., TokenTree::Ident(word), TokenTree::Ident(name), end] =
            &trees[..=end.min(trees.len() - 1)]
            && word == "mod"
            && is_punct(end, ';')
        {
            self.test_modules.push(name.to_string());
        }
        end + 1
    }
}

/// Names and paths of the leaves of a `use`, in which paths begin with `prefix`.
fn leaves(trees: &[TokenTree], prefix: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for leaf in trees.split(|tree| is_punct(tree, ',')) {
        let mut path = prefix.to_owned();
        let mut name = String::new();
        for tree in leaf {
            match tree {
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    found.extend(leaves(&inner, &path));
                    name.clear();
                }
                TokenTree::Ident(word) if name.ends_with(' ') => name = word.to_string(),
                TokenTree::Ident(word) if word == "as" => name = " ".to_owned(),
                // `a::{self}` names `a` itself.
                TokenTree::Ident(word) if word == "self" && !path.is_empty() => {
                    path = path.trim_end_matches("::").to_owned();
                    name = path.rsplit("::").next().unwrap_or_default().to_owned();
                }
                tree => {
                    path += &tree.to_string();
                    name = tree.to_string();
                }
            }
        }
        if !name.is_empty() && name != ":" {
            found.push((name, path));
        }
    }
    found
}

fn read_all(dir: &Path, found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(Source::read(&path));
        }
    }
}

/// The text in the brackets of an attribute that begins here.
fn attribute(trees: &[TokenTree]) -> Option<String> {
    match trees {
        [mark, TokenTree::Group(group), ..]
            if is_punct(mark, '#') && group.delimiter() == Delimiter::Bracket =>
        {
            Some(group.stream().to_string())
        }
        _ => None,
    }
}

fn is_colons(trees: &[TokenTree]) -> bool {
    matches!(trees, [a, b, ..] if is_punct(a, ':') && is_punct(b, ':'))
}

fn is_punct(tree: &TokenTree, mark: char) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == mark)
}

/// The arguments of every call of the path `function` in `source`.
pub fn arguments_of(source: &str, function: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut streams: Vec<TokenStream> = vec![source.parse().unwrap()];
    while let Some(stream) = streams.pop() {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        let mut written = String::new();
        for tree in &trees {
            match tree {
                TokenTree::Group(group) => {
                    if written.ends_with(function) && group.delimiter() == Delimiter::Parenthesis {
                        found.insert(group.stream().to_string());
                    }
                    streams.push(group.stream());
                    written.clear();
                }
                tree => written += &tree.to_string(),
            }
        }
    }
    found
}

/// A file with words in comments, in strings, in tests and in code.
const SOURCE: &str = r##"
    //! println!("in a comment of the module")
    use std::{
        fs,
        io::{Read, Write as _},
    };
    /// std::net, in words.
    #[derive(Debug)]
    #[cfg(test)]
    mod of_tests;
    #[cfg(test)]
    mod tests {
        fn f() { println!("std::thread"); }
    }
    fn g(path: &Path) -> bool {
        // eprintln!("a comment");
        std :: eprintln!("a \"mixtral\"");
        Command::new(&nvcc).arg(path).exists() && path
            .is_file()
    }
    #[cfg(feature = "cuda")]
    const NAME: &str = "mixtral";
"##;

/// Words of [`SOURCE`], of which some stand on several lines or within braces.
const WORDS: [&str; 8] = [
    "std::fs",
    "std::io::Read",
    "std::io::Write",
    "std::eprintln!",
    ".exists",
    ".is_file",
    "\"mixtral\"",
    "Debug",
];

#[test]
fn words_are_found_wherever_they_stand() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lib.rs");
    std::fs::write(&path, SOURCE).unwrap();
    std::fs::write(dir.path().join("of_tests.rs"), "fn f() { std::process::exit(1) }").unwrap();
    let sources = Source::below(dir.path());
    assert_eq!(sources.len(), 1);
    let words: BTreeSet<&str> = sources[0].words.iter().map(String::as_str).collect();
    for word in WORDS {
        assert!(words.contains(word), "{word}: {words:?}");
    }
    for word in ["println!", "std::net", "std::thread", "std::process::exit", "\"std::thread\""] {
        assert!(!words.contains(word), "{word}: {words:?}");
    }
    assert_eq!(
        arguments_of("Command::new(&nvcc); f(Command::new(\"curl\"))", "Command::new").len(),
        2
    );
}
