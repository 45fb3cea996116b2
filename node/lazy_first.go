package node

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lumbung-net/lumbung/job/sandbox"
)

const (
	// firstEnd is the end of the name of a file that lists what containers on an
	// image opened first. It outlives the image's folder and its blocks: the next
	// time that the image arrives, those files come first.
	firstEnd = ".first"
	// maxFirstBytes bounds such a list, and maxFirstLists how many are kept.
	maxFirstBytes = 256 << 10
	maxFirstLists = 256
)

// keepFirst puts what a container opened before what earlier ones did, and
// removes the lists that nothing was added to for longest.
func keepFirst(file string, opened []string) error {
	seen := map[string]bool{}
	var names []string
	for _, name := range append(slices.Clone(opened), readFirst(file)...) {
		if !seen[name] && len(names) < sandbox.MaxOpened {
			seen[name] = true
			names = append(names, name)
		}
	}
	return errors.Join(writeFirst(file, names), trimFirst(filepath.Dir(file)))
}

// trimFirst removes all but the newest lists.
func trimFirst(dir string) error {
	lists, err := filepath.Glob(filepath.Join(dir, "*"+firstEnd))
	if err != nil || len(lists) <= maxFirstLists {
		return err
	}
	infos := map[string]fs.FileInfo{}
	for _, list := range lists {
		if infos[list], err = os.Lstat(list); err != nil {
			return err
		}
	}
	slices.SortFunc(lists, func(a, b string) int {
		return cmp.Or(infos[a].ModTime().Compare(infos[b].ModTime()), cmp.Compare(a, b))
	})
	for _, list := range lists[:len(lists)-maxFirstLists] {
		err = errors.Join(err, os.RemoveAll(list))
	}
	return err
}

// readFirst reads what writeFirst wrote; what is damaged is as none.
func readFirst(file string) []string {
	data, err := os.ReadFile(file)
	if err != nil || len(data) > maxFirstBytes {
		return nil
	}
	var names []string
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if name := lines.Text(); name != "" && len(names) < sandbox.MaxOpened {
			names = append(names, name)
		}
	}
	return names
}

// writeFirst keeps the names, a line each; one with a line's end in it is left out.
func writeFirst(file string, names []string) error {
	var b bytes.Buffer
	for _, name := range names {
		if !strings.ContainsAny(name, "\r\n") && b.Len()+len(name) < maxFirstBytes {
			fmt.Fprintln(&b, name)
		}
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".first-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(b.Bytes())
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}
