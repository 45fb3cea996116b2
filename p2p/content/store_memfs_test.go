package content

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
)

// memFS is a file system in memory that fails and crashes where it is told to.
// What was not synced may be lost by a crash, in part and in any order: written
// sectors, lengths, and names alike.
type memFS struct {
	mu     sync.Mutex
	names  map[string]*memInode
	onDisk map[string]*memInode
	ops    []nameOp // on names since the folder was synced
	locked bool

	n     int // operations that can fail, so far
	fault func(n int, op string) fault
	dead  bool // the process was killed: nothing works any more
}

// fault is what happens to one operation.
type fault int

const (
	noFault    fault = iota
	failed           // an error, nothing done
	failedHalf       // an error, a part of a write done
	noRoom           // a part of a write done, the disk is full
	syncGate         // a failed fsync after which the kernel forgets what was not written
	killed           // a part of it done, and the process is gone
	gone             // it was gone before
)

var (
	errKilled = errors.New("the process is gone")
	errIO     = &fs.PathError{Op: "test", Path: "disk", Err: syscall.EIO}
)

type nameOp struct {
	names  []string
	inodes []*memInode // nil removes the name
}

type memInode struct {
	data   []byte
	onDisk []byte
	writes []memWrite
}

type memWrite struct {
	off  int64
	data []byte
	cut  bool // a Truncate to off
}

const sector = 512

func newMemFS() *memFS {
	return &memFS{names: map[string]*memInode{}, onDisk: map[string]*memInode{}}
}

// step counts an operation and says what happens to it. The caller holds mu.
func (m *memFS) step(op string) (fault, error) {
	if m.dead {
		return gone, errKilled
	}
	m.n++
	if m.fault == nil {
		return noFault, nil
	}
	switch f := m.fault(m.n, op); f {
	case noFault:
		return f, nil
	case noRoom:
		if op == "write" || op == "make" || op == "rename" {
			return f, &fs.PathError{Op: op, Path: "disk", Err: syscall.ENOSPC}
		}
		return noFault, nil
	case killed:
		m.dead = true
		return f, errKilled
	default:
		return f, errIO
	}
}

// restart is what a new process finds: after a kill all that was done, after a
// crash of the machine what was synced and some of what was not.
func (m *memFS) restart(crash bool, rng *rand.Rand) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead, m.locked, m.fault, m.n = false, false, nil, 0
	if !crash {
		return
	}
	for _, op := range m.ops {
		if rng.IntN(2) == 0 {
			op.apply(m.onDisk)
		}
	}
	m.ops = nil
	m.names = map[string]*memInode{}
	for name, in := range m.onDisk {
		in.crash(rng)
		m.names[name] = in
	}
}

func (o nameOp) apply(names map[string]*memInode) {
	for i, name := range o.names {
		if delete(names, name); o.inodes[i] != nil {
			names[name] = o.inodes[i]
		}
	}
}

func (in *memInode) crash(rng *rand.Rand) {
	lose := rng.IntN(3) // nothing, everything, or some of what was not synced
	for _, w := range in.writes {
		switch {
		case lose == 1 || lose == 2 && w.cut && rng.IntN(2) == 0:
		case w.cut:
			in.onDisk = resize(in.onDisk, w.off)
		default:
			in.tear(w, lose == 0, rng)
		}
	}
	in.writes = nil
	in.data = append([]byte(nil), in.onDisk...)
}

// tear writes some sectors of w.
func (in *memInode) tear(w memWrite, all bool, rng *rand.Rand) {
	for at := int64(0); at < int64(len(w.data)); {
		end := min(int64(len(w.data)), at+sector-(w.off+at)%sector)
		if all || rng.IntN(2) == 0 {
			in.onDisk = overlay(in.onDisk, w.data[at:end], w.off+at)
		} else if rng.IntN(2) == 0 && w.off+end > int64(len(in.onDisk)) {
			in.onDisk = resize(in.onDisk, w.off+end) // the length without the bytes
		}
		at = end
	}
}

func resize(b []byte, n int64) []byte {
	if n <= int64(len(b)) {
		return b[:n]
	}
	return append(b, make([]byte, n-int64(len(b)))...)
}

func overlay(b, data []byte, off int64) []byte {
	if end := off + int64(len(data)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[off:], data)
	return b
}

func (m *memFS) mkdir(string) error { return nil }

func (m *memFS) lock(string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locked {
		return nil, errors.New("locked")
	}
	m.locked = true
	return memLock{m}, nil
}

type memLock struct{ m *memFS }

func (l memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.m.locked = false
	return nil
}

func (m *memFS) open(path string) (diskFile, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if in := m.names[path]; in != nil {
		if m.dead {
			return nil, errKilled
		}
		return &memFile{m, in}, nil
	}
	return m.make(path)
}

func (m *memFS) create(path string) (diskFile, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.make(path)
}

func (m *memFS) make(path string) (diskFile, error) {
	f, err := m.step("make")
	if err != nil && f != killed {
		return nil, err
	}
	in := &memInode{}
	m.do(nameOp{[]string{path}, []*memInode{in}})
	return &memFile{m, in}, err
}

func (m *memFS) do(op nameOp) {
	op.apply(m.names)
	m.ops = append(m.ops, op)
}

func (m *memFS) rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, err := m.step("rename")
	if err != nil && f != killed {
		return err
	}
	m.do(nameOp{[]string{from, to}, []*memInode{nil, m.names[from]}})
	return err
}

func (m *memFS) remove(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, err := m.step("remove")
	if err != nil && f != killed {
		return err
	}
	m.do(nameOp{[]string{path}, []*memInode{nil}})
	return err
}

func (m *memFS) list(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, errKilled
	}
	var names []string
	for name := range m.names {
		if filepath.Dir(name) == dir {
			names = append(names, filepath.Base(name))
		}
	}
	return names, nil
}

func (m *memFS) syncDir(string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.step("syncdir"); err != nil {
		return err
	}
	for _, op := range m.ops {
		op.apply(m.onDisk)
	}
	m.ops = nil
	return nil
}

func (m *memFS) free(string) (uint64, error) { return 12345, nil }

type memFile struct {
	m  *memFS
	in *memInode
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return 0, errKilled
	}
	if off > int64(len(f.in.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.in.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	fl, err := f.m.step("write")
	if fl == gone || fl == failed {
		return 0, err
	}
	if err != nil {
		b = b[:len(b)/2]
	}
	data := append([]byte(nil), b...)
	f.in.data = overlay(f.in.data, data, off)
	f.in.writes = append(f.in.writes, memWrite{off: off, data: data})
	return len(b), err
}

func (f *memFile) writeVec(bufs [][]byte, off int64) error {
	for _, b := range bufs {
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

func (f *memFile) Truncate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	fl, err := f.m.step("truncate")
	if err != nil && fl != killed {
		return err
	}
	f.in.data = resize(f.in.data, size)
	f.in.writes = append(f.in.writes, memWrite{off: size, cut: true})
	return err
}

func (f *memFile) Sync() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if fl, err := f.m.step("sync"); err != nil {
		if fl == syncGate {
			f.in.writes = nil
		}
		return err
	}
	for _, w := range f.in.writes {
		if w.cut {
			f.in.onDisk = resize(f.in.onDisk, w.off)
		} else {
			f.in.onDisk = overlay(f.in.onDisk, w.data, w.off)
		}
	}
	f.in.writes = nil
	return nil
}

func (f *memFile) size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return int64(len(f.in.data)), nil
}

func (f *memFile) writeback(int64, int64) {}

func (f *memFile) Close() error { return nil }
