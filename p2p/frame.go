package p2p

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/lumbung-net/lumbung/protocol"
)

// maxDetail bounds the words of a refusal, in bytes.
const maxDetail = 300

// appendFrame appends a body with its length before it, as an unsigned varint.
func appendFrame(dst, body []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(body)))
	return append(dst, body...)
}

// frameSize reads a frame's length and checks it before anything is allocated.
func frameSize(r io.ByteReader, limit int) (int, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, fmt.Errorf("length of a frame: %w", noEOF(err))
	}
	if n > uint64(limit) {
		return 0, fmt.Errorf("a frame of %d bytes is over its limit of %d: %w", n, limit, protocol.ErrTooLarge)
	}
	return int(n), nil
}

// readFrame reads a frame of at most limit bytes.
func readFrame(r *bufio.Reader, limit int) ([]byte, error) {
	n, err := frameSize(r, limit)
	if err != nil {
		return nil, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("a frame of %d bytes was cut short: %w", n, noEOF(err))
	}
	return body, nil
}

// readAnswer reads a status and the body that belongs to it: an envelope of at
// most limit bytes, or the words of a refusal.
func readAnswer(r *bufio.Reader, limit int) (protocol.Status, []byte, error) {
	b, err := r.ReadByte()
	if err != nil {
		return 0, nil, fmt.Errorf("status of the answer: %w", noEOF(err))
	}
	status := protocol.Status(b)
	if status != protocol.StatusOK {
		limit = maxDetail
	}
	body, err := readFrame(r, limit)
	return status, body, err
}

// answerFrame is the encoding that readAnswer reads.
func answerFrame(status protocol.Status, body []byte) []byte {
	if status != protocol.StatusOK {
		body = []byte(plain(string(body), maxDetail))
	}
	return appendFrame([]byte{byte(status)}, body)
}

// plain makes text of strangers fit for logs and terminals.
func plain(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError || (r >= 0x80 && r < 0xa0) {
			return ' '
		}
		return r
	}, s)
	for len(s) > limit {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

// noEOF keeps the end of a stream inside a message from being taken for its
// regular end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
