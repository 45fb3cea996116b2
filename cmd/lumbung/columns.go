package main

import (
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	gap  = 2  // blanks between columns, and before what is continued
	tail = 24 // the least room in which a last column's words are wrapped
)

// layout aligns lines of cells with tabs between; a line without a tab ends one
// table and begins another. Where width, the terminal's columns, is not 0, a
// table that does not fit is made narrower without breaking a word or leaving
// out what somebody may want to copy, such as peer ids: columns that say
// nothing go, then blanks, and the rest continues on a line of its own.
func layout(lines []string, width int) string {
	var out strings.Builder
	var table [][]string
	flush := func() {
		if len(table) > 0 {
			align(&out, table, width)
		}
		table = nil
	}
	for _, line := range lines {
		if strings.Contains(line, "\t") {
			table = append(table, strings.Split(line, "\t"))
			continue
		}
		flush()
		out.WriteString(line + "\n")
	}
	flush()
	return out.String()
}

func align(out *strings.Builder, table [][]string, width int) {
	most := 0
	for _, r := range table {
		most = max(most, len(r))
	}
	for i, r := range table {
		table[i] = append(r, make([]string, most-len(r))...)
	}
	s := shape{widths: widthsOf(table), between: gap, width: width}
	headed := table[0][0] != "" && table[0][0] == strings.ToUpper(table[0][0])
	if headed && !s.fits() {
		table = dropEmpty(table)
		s.widths = widthsOf(table)
		if !s.fits() {
			s.between = 1
		}
	}
	s.fold(table, headed)
	for _, r := range table {
		s.write(out, r)
	}
}

// widthsOf are the columns' widths in letters.
func widthsOf(table [][]string) []int {
	out := make([]int, len(table[0]))
	for _, r := range table {
		for i, cell := range r {
			out[i] = max(out[i], utf8.RuneCountInString(cell))
		}
	}
	return out
}

// dropEmpty leaves the columns away in which nothing stands below the header.
func dropEmpty(table [][]string) [][]string {
	out := make([][]string, len(table))
	for i := range table[0] {
		says := func(r []string) bool { return r[i] != "" && r[i] != "-" }
		if len(table) > 1 && !slices.ContainsFunc(table[1:], says) {
			continue
		}
		for j, r := range table {
			out[j] = append(out[j], r[i])
		}
	}
	return out
}

// shape is how a table's rows are written.
type shape struct {
	widths  []int
	between int
	width   int          // of the terminal; 0 is no bound
	breaks  map[int]bool // the columns that begin a line of their own
}

func (s *shape) fits() bool {
	n := s.between * (len(s.widths) - 1)
	for _, w := range s.widths {
		n += w
	}
	return s.width == 0 || n <= s.width
}

// fold chooses the columns that begin another line. The last column's words may
// be wrapped, so that it needs less room than it would take.
func (s *shape) fold(table [][]string, headed bool) {
	s.breaks = map[int]bool{}
	if s.width == 0 || !headed {
		return
	}
	at, last := 0, len(s.widths)-1
	for i, w := range s.widths {
		if i == last {
			w = min(w, max(tail, longestWord(table, i)))
		}
		if at > 0 && at+w > s.width {
			s.breaks[i] = true
			at = gap
		}
		at += w + s.between
	}
}

func longestWord(table [][]string, column int) int {
	n := 0
	for _, r := range table {
		for word := range strings.FieldsSeq(r[column]) {
			n = max(n, utf8.RuneCountInString(word))
		}
	}
	return n
}

func (s *shape) write(out *strings.Builder, cells []string) {
	at, pending := 0, 0 // the column that the line has come to, and blanks due before the next cell
	for i, cell := range cells {
		if s.breaks[i] {
			out.WriteString("\n")
			at, pending = 0, gap
		}
		if i == len(cells)-1 && s.width > 0 {
			cell = wrap(cell, s.width, at+pending)
		}
		if strings.HasPrefix(cell, "\n") {
			pending = 0
		}
		if cell != "" {
			out.WriteString(strings.Repeat(" ", pending) + cell)
			at += pending + utf8.RuneCountInString(cell)
			pending = 0
		}
		pending += s.widths[i] + s.between - utf8.RuneCountInString(cell)
	}
	out.WriteString("\n")
}

// wrap breaks a text that begins in column at between words, so that it ends
// within width where its words let it. What has too little room is put below.
func wrap(text string, width, at int) string {
	if at+utf8.RuneCountInString(text) <= width {
		return text
	}
	var out strings.Builder
	if width-at < tail && at > 2*gap {
		at = 2 * gap
		out.WriteString("\n" + strings.Repeat(" ", at))
	}
	used := at
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case used+1+n > width:
			out.WriteString("\n" + strings.Repeat(" ", at))
			used = at
		default:
			out.WriteString(" ")
			used++
		}
		out.WriteString(word)
		used += n
	}
	return out.String()
}
