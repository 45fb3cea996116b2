package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// show prints one result: as JSON when that was asked for, else as text says.
func (a *app) show(v any, text func(w io.Writer)) error {
	switch a.format {
	case "json":
		return a.encode(v, "  ")
	case "jsonl":
		return a.encode(v, "")
	}
	return a.table(text)
}

// wantsJSON says that stdout is for a program.
func (a *app) wantsJSON() bool { return a.format == "json" || a.format == "jsonl" }

// ending is how a command ended, in the JSON of those that end with a code of
// their own.
type ending struct {
	ExitSource string `json:"exit_source"`
	Code       int    `json:"code"`
	Remedy     string `json:"remedy"`
}

// exit is the error that ends a command so, after it was shown.
func (e ending) exit() error {
	if e.Code == 0 {
		return nil
	}
	return &exitError{code: e.Code}
}

// showList prints many results: a JSON array, a JSON value a line, or a table.
func showList[T any](a *app, list []T, text func(w io.Writer)) error {
	switch a.format {
	case "json":
		if list == nil {
			list = []T{}
		}
		return a.encode(list, "  ")
	case "jsonl":
		for _, v := range list {
			if err := a.encode(v, ""); err != nil {
				return err
			}
		}
		return nil
	}
	return a.table(text)
}

// jsonArray writes an array whose elements come one by one.
type jsonArray struct {
	a     *app
	begun bool
}

func (j *jsonArray) add(v any) error {
	before := ","
	if !j.begun {
		j.begun, before = true, "["
	}
	if _, err := io.WriteString(j.a.con.out, before); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return j.a.encode(v, "")
}

func (j *jsonArray) end() error {
	rest := "]\n"
	if !j.begun {
		rest = "[]\n"
	}
	if _, err := io.WriteString(j.a.con.out, rest); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

func (a *app) encode(v any, indent string) error {
	enc := json.NewEncoder(a.con.out)
	enc.SetIndent("", indent)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// table writes columns, told apart by tabs, aligned, and on a terminal within
// its width.
func (a *app) table(text func(w io.Writer)) error {
	var b strings.Builder
	text(&b)
	if b.Len() == 0 {
		return nil
	}
	width := 0
	if a.con.outTTY {
		width = a.con.outWidth()
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if _, err := io.WriteString(a.con.out, layout(lines, width)); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// row writes one line of a table.
func row(w io.Writer, cells ...any) {
	parts := make([]string, len(cells))
	for i, c := range cells {
		parts[i] = clean(fmt.Sprint(c))
	}
	_, _ = fmt.Fprintln(w, strings.TrimRight(strings.Join(parts, "\t"), "\t "))
}

// clean keeps what a peer wrote from moving the cursor or breaking the table.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}
