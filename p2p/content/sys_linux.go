package content

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxVec is how many pieces one system call takes.
const maxVec = 1024

func (f osFile) writeVec(bufs [][]byte, off int64) error {
	if len(bufs) == 1 {
		_, err := f.WriteAt(bufs[0], off)
		return err
	}
	for len(bufs) > 0 {
		vec := bufs[:min(len(bufs), maxVec)]
		want := 0
		for _, b := range vec {
			want += len(b)
		}
		n, err := unix.Pwritev(int(f.Fd()), vec, off)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "pwritev", Path: f.Name(), Err: err}
		}
		if n < want { // what is left tells why
			return f.writeEach(cutVec(bufs, n), off+int64(n))
		}
		bufs, off = bufs[len(vec):], off+int64(n)
	}
	return nil
}

// cutVec returns bufs without their first n bytes.
func cutVec(bufs [][]byte, n int) [][]byte {
	for i, b := range bufs {
		if n < len(b) {
			out := append([][]byte{b[n:]}, bufs[i+1:]...)
			return out
		}
		n -= len(b)
	}
	return nil
}

func (f osFile) writeback(off, n int64) {
	// An error shows in Sync, and a file system without the call needs none.
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

var _ io.WriterAt = osFile{}
