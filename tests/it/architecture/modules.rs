//! Finds which modules of a crate import which others. A module is a file; what another module
//! hands on by `pub use` belongs to the file that defines it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tokens::Source;

/// A module's path below its crate; empty for the crate itself.
type Module = Vec<String>;

/// The modules of a crate.
pub struct Modules {
    files: BTreeMap<Module, Source>,
}

impl Modules {
    /// The modules of the crate whose `src` is `dir`, without tests.
    pub fn of(dir: &Path) -> Self {
        let sources = Source::below(dir).into_iter();
        Self { files: sources.map(|source| (module(dir, &source.path), source)).collect() }
    }

    /// Sets of modules that import each other, directly or through others.
    pub fn circles(&self) -> Vec<BTreeSet<String>> {
        let imports: BTreeMap<&Module, BTreeSet<Module>> =
            self.files.keys().map(|module| (module, self.imports(module))).collect();
        let reached: BTreeMap<&Module, BTreeSet<Module>> =
            self.files.keys().map(|module| (module, reached(&imports, module))).collect();
        let mut circles: Vec<BTreeSet<String>> = Vec::new();
        for (module, all) in reached.iter().filter(|(module, all)| all.contains(**module)) {
            let circle = all.iter().filter(|other| reached[other].contains(*module));
            let circle: BTreeSet<String> = circle.map(shown).collect();
            if !circles.contains(&circle) {
                circles.push(circle);
            }
        }
        circles
    }

    fn imports(&self, module: &Module) -> BTreeSet<Module> {
        let source = &self.files[module];
        let paths = source.words.iter().filter(|word| word.contains("::"));
        let own = paths.filter(|path| !source.handed_on.contains(*path));
        let resolved = own.filter_map(|path| self.defined_in(self.absolute(module, path)?, 0));
        resolved.filter(|found| found != module).collect()
    }

    /// The path from the crate's root that `path` means in `module`; None for other crates.
    fn absolute(&self, module: &Module, path: &str) -> Option<Module> {
        let parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
        let ups = parts.iter().take_while(|part| **part == "super").count();
        let (mut found, rest) = match parts[..] {
            ["crate", ..] => (Module::new(), &parts[1..]),
            ["self", ..] => (module.clone(), &parts[1..]),
            _ if ups > 0 => (module[..module.len().checked_sub(ups)?].to_vec(), &parts[ups..]),
            [first, _, ..] if self.is_known(module, first) => (module.clone(), &parts[..]),
            _ => return None,
        };
        found.extend(rest.iter().filter(|part| **part != "self").map(|part| (*part).to_owned()));
        Some(found)
    }

    /// Whether `name` is a child of `module`, or a name that `module` imports from its own crate.
    fn is_known(&self, module: &Module, name: &str) -> bool {
        let child: Module = module.iter().cloned().chain([name.to_owned()]).collect();
        self.files.contains_key(&child) || self.files[module].names.contains_key(name)
    }

    /// The module that defines what `path` means, through any number of `use`s below `MAX_USES`.
    fn defined_in(&self, path: Module, depth: usize) -> Option<Module> {
        let length = (0..=path.len()).rev().find(|n| self.files.contains_key(&path[..*n]))?;
        let module = path[..length].to_vec();
        let name = path.get(length).filter(|_| depth < MAX_USES);
        let Some(used) = name.and_then(|name| self.files[&module].names.get(name)) else {
            return Some(module);
        };
        let Some(mut used) = self.absolute(&module, used) else { return Some(module) };
        used.extend_from_slice(&path[length + 1..]);
        self.defined_in(used, depth + 1)
    }
}

/// All modules that `module` imports, directly or through others.
fn reached(imports: &BTreeMap<&Module, BTreeSet<Module>>, module: &Module) -> BTreeSet<Module> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&Module> = imports[module].iter().collect();
    while let Some(module) = next.pop() {
        if reached.insert(module.clone()) {
            next.extend(&imports[module]);
        }
    }
    reached
}

/// The limit on the number of `use`s that a name goes through.
const MAX_USES: usize = 8;

fn module(dir: &Path, file: &Path) -> Module {
    let below = file.strip_prefix(dir).unwrap().with_extension("");
    let mut parts: Module = below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if matches!(parts[..], [ref one] if one == "lib" || one == "main")
        || parts.last().is_some_and(|last| last == "mod")
    {
        parts.pop();
    }
    parts
}

fn shown(module: &Module) -> String {
    if module.is_empty() { "lib".to_owned() } else { module.join("::") }
}

#[test]
fn circles_are_found_through_what_modules_hand_on() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("lib.rs", "mod a; mod b; mod c; mod d; pub use a::A; pub use d::inner::D;");
    write("a.rs", "use crate::b; struct A; fn f() { b::g() }");
    write("b.rs", "use crate::{c::{C as Other}, d}; fn g() -> d::D { Other::new() }");
    write("d/mod.rs", "mod inner; pub use self::inner::D;");
    write("d/inner.rs", "struct D;");
    write("c.rs", "struct C; #[cfg(test)] mod tests { use crate::A; }");
    let circles = || Modules::of(dir.path()).circles();
    assert_eq!(circles(), Vec::<BTreeSet<String>>::new());
    // The circle goes through the crate's own names, and through a name that is used alone.
    let of = |names: &[&str]| vec![names.iter().map(|name| (*name).to_owned()).collect()];
    write("c.rs", "struct C; fn f() -> crate::A { todo!() }");
    assert_eq!(circles(), of(&["a", "b", "c"]) as Vec<BTreeSet<String>>);
    write("c.rs", "struct C;");
    write("d/inner.rs", "use super::super::a::A; struct D;");
    assert_eq!(circles(), of(&["a", "b", "d::inner"]) as Vec<BTreeSet<String>>);
    // A module and its child that import each other.
    write("d/inner.rs", "use super::Own; struct D;");
    write("d/mod.rs", "mod inner; use self::inner::D; struct Own(D);");
    assert_eq!(circles(), of(&["d", "d::inner"]) as Vec<BTreeSet<String>>);
}
