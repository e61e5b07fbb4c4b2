//! The modules of one crate as its source says them: which file holds each, what it defines,
//! imports and mentions.
//!
//! What only tests see (`#[cfg(test)]`, `#[test]`) is left out, unless [`Scope`] says otherwise.

use crate::workspace::{ReadError, read};
use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemImpl, ItemMod, UseTree, Visibility};

/// A module's path from its crate's root: `[]` is the root itself.
pub type ModulePath = Vec<String>;

/// Which items count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// What the product is built from.
    Product,
    /// What only tests see, too.
    WithTests,
}

impl Scope {
    fn has(self, attributes: &[Attribute]) -> bool {
        self == Scope::WithTests || !for_tests(attributes)
    }
}

/// One module. A module that is written inside another's file is one of its own, with the same
/// [`Module::file`].
#[derive(Debug)]
pub struct Module {
    /// The file that holds it.
    pub file: PathBuf,
    /// Names of the modules directly below it.
    pub children: BTreeSet<String>,
    /// Those of them that are `pub`.
    pub public_children: BTreeSet<String>,
    /// Names of all other items that it defines.
    pub defines: BTreeSet<String>,
    /// Those of them that are `pub` and types or traits.
    pub public_types: BTreeSet<String>,
    /// Name to path of what `use` brings in, `pub use` included.
    pub imports: BTreeMap<String, Vec<String>>,
    /// The names of them that a `pub use` brings in.
    pub public_imports: BTreeSet<String>,
    /// Paths whose names a `use path::*` brings in.
    pub globs: Vec<Vec<String>>,
    /// Every path of at least two segments that its code mentions, those of its `use` lines
    /// included.
    pub mentions: BTreeSet<Vec<String>>,
    /// Types with an `impl X { … }` here (not of a trait).
    pub inherent_impls: BTreeSet<String>,
    /// Kinds of items here other than `mod`, `use` and what tests see: `struct Shared`, `impl`, ….
    pub other_items: Vec<String>,
}

/// The modules of a crate by their path, beginning at `source` (a `lib.rs` or `main.rs`).
///
/// # Errors
///
/// A file is missing or is no Rust.
pub fn read_modules(source: &Path, scope: Scope) -> Result<BTreeMap<ModulePath, Module>, ReadError> {
    let mut modules = BTreeMap::new();
    let folder = source.parent().unwrap_or(Path::new("."));
    read_file(source, folder, Vec::new(), scope, &mut modules)?;
    Ok(modules)
}

fn read_file(
    file: &Path,
    folder: &Path,
    path: ModulePath,
    scope: Scope,
    modules: &mut BTreeMap<ModulePath, Module>,
) -> Result<(), ReadError> {
    let parsed = syn::parse_file(&read(file)?).map_err(|e| ReadError::Syntax(file.to_path_buf(), e.to_string()))?;
    read_items(&parsed.items, file, folder, path, scope, modules)
}

fn read_items(
    items: &[Item],
    file: &Path,
    folder: &Path,
    path: ModulePath,
    scope: Scope,
    modules: &mut BTreeMap<ModulePath, Module>,
) -> Result<(), ReadError> {
    let mut module = Module {
        file: file.to_path_buf(),
        children: BTreeSet::new(),
        public_children: BTreeSet::new(),
        defines: BTreeSet::new(),
        public_types: BTreeSet::new(),
        imports: BTreeMap::new(),
        public_imports: BTreeSet::new(),
        globs: Vec::new(),
        mentions: BTreeSet::new(),
        inherent_impls: BTreeSet::new(),
        other_items: Vec::new(),
    };
    for item in items.iter().filter(|item| scope.has(attributes(item))) {
        match item {
            Item::Mod(child) => {
                let name = child.ident.to_string();
                let below: ModulePath = path.iter().cloned().chain([name.clone()]).collect();
                read_child(child, file, folder, below, scope, modules)?;
                module.public_children.extend(is_public(&child.vis).then(|| name.clone()));
                module.children.insert(name);
            }
            Item::Use(import) => {
                let mut leaves = Vec::new();
                flatten(&import.tree, &mut Vec::new(), &mut leaves);
                for (name, to) in leaves {
                    module.mentions.insert(to.clone());
                    match name {
                        Some(name) => {
                            module.public_imports.extend(is_public(&import.vis).then(|| name.clone()));
                            module.imports.insert(name, to);
                        }
                        None => module.globs.push(to),
                    }
                }
            }
            other => {
                let (kind, name) = described(other);
                module.defines.extend(name.clone());
                module.public_types.extend(public_type(other));
                module.other_items.push(format!("{kind} {}", name.unwrap_or_default()).trim().to_string());
                if let Item::Impl(ItemImpl { trait_: None, self_ty, .. }) = other
                    && let syn::Type::Path(of) = &**self_ty
                    && let Some(last) = of.path.segments.last()
                {
                    module.inherent_impls.insert(last.ident.to_string());
                }
                Mentions { paths: &mut module.mentions, scope }.visit_item(other);
            }
        }
    }
    modules.insert(path, module);
    Ok(())
}

fn read_child(
    child: &ItemMod,
    file: &Path,
    folder: &Path,
    below: ModulePath,
    scope: Scope,
    modules: &mut BTreeMap<ModulePath, Module>,
) -> Result<(), ReadError> {
    let name = child.ident.to_string();
    let inside = folder.join(&name);
    match &child.content {
        Some((_, items)) => read_items(items, file, &inside, below, scope, modules),
        None => {
            let leaf = folder.join(format!("{name}.rs"));
            let usual = || if leaf.exists() { leaf } else { inside.join("mod.rs") };
            let file = named_file(&child.attrs).map_or_else(usual, |named| file.with_file_name(named));
            read_file(&file, &inside, below, scope, modules)
        }
    }
}

/// The file that `#[path = "…"]` names.
fn named_file(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(syn::MetaNameValue {
            path,
            value: syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(named), .. }),
            ..
        }) if path.is_ident("path") => Some(named.value()),
        _ => None,
    })
}

fn flatten(tree: &UseTree, before: &mut Vec<String>, leaves: &mut Vec<(Option<String>, Vec<String>)>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, leaves);
            before.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, before, leaves)),
        UseTree::Glob(_) => leaves.push((None, before.clone())),
        UseTree::Name(name) if name.ident == "self" => leaves.push((before.last().cloned(), before.clone())),
        UseTree::Name(name) => {
            let to: Vec<String> = before.iter().cloned().chain([name.ident.to_string()]).collect();
            leaves.push((Some(name.ident.to_string()), to));
        }
        UseTree::Rename(rename) => {
            let mut to = before.clone();
            if rename.ident != "self" {
                to.push(rename.ident.to_string());
            }
            leaves.push((Some(rename.rename.to_string()), to));
        }
    }
}

/// Whether only tests see an item with these attributes.
fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let is_test = attribute.path().segments.last().is_some_and(|last| last.ident == "test");
        is_test || attribute.path().is_ident("cfg") && mentions_test(attribute)
    })
}

fn mentions_test(attribute: &Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else { return false };
    fn within(tokens: TokenStream) -> bool {
        tokens.into_iter().any(|token| match token {
            TokenTree::Ident(ident) => ident == "test",
            TokenTree::Group(group) => within(group.stream()),
            _ => false,
        })
    }
    within(list.tokens.clone())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn described(item: &Item) -> (&'static str, Option<String>) {
    match item {
        Item::Const(item) => ("const", Some(item.ident.to_string())),
        Item::Enum(item) => ("enum", Some(item.ident.to_string())),
        Item::Fn(item) => ("fn", Some(item.sig.ident.to_string())),
        Item::Impl(_) => ("impl", None),
        Item::Macro(item) => ("macro", item.ident.as_ref().map(|ident| ident.to_string())),
        Item::Static(item) => ("static", Some(item.ident.to_string())),
        Item::Struct(item) => ("struct", Some(item.ident.to_string())),
        Item::Trait(item) => ("trait", Some(item.ident.to_string())),
        Item::Type(item) => ("type", Some(item.ident.to_string())),
        _ => ("item", None),
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// The name of an item that is a public type or trait.
fn public_type(item: &Item) -> Option<String> {
    let (visibility, name) = match item {
        Item::Enum(item) => (&item.vis, &item.ident),
        Item::Struct(item) => (&item.vis, &item.ident),
        Item::Trait(item) => (&item.vis, &item.ident),
        Item::Type(item) => (&item.vis, &item.ident),
        _ => return None,
    };
    is_public(visibility).then(|| name.to_string())
}

/// Collects the paths of an item.
struct Mentions<'a> {
    paths: &'a mut BTreeSet<Vec<String>>,
    scope: Scope,
}

impl<'ast> Visit<'ast> for Mentions<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if self.scope.has(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if self.scope.has(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, import: &'ast syn::ItemUse) {
        let mut leaves = Vec::new();
        flatten(&import.tree, &mut Vec::new(), &mut leaves);
        self.paths.extend(leaves.into_iter().map(|(_, to)| to));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.paths.insert(segments);
        }
        visit::visit_path(self, path);
    }

    // An error's text may name a constant.
    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.visit_path(&called.path);
        self.tokens(called.tokens.clone());
    }
}

impl Mentions<'_> {
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path);
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' && colons < 2 => colons += 1,
                TokenTree::Group(group) => {
                    self.end(&mut path);
                    colons = 0;
                    self.tokens(group.stream());
                }
                _ => {
                    self.end(&mut path);
                    colons = 0;
                }
            }
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Vec<String>) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.paths.insert(path);
        }
    }
}
