//go:build unix

package postgres

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	socketDirPrefix = "tasker-pg-"
	// socketPathLimit is what fits into sockaddr_un everywhere: 104 bytes on macOS, a final zero included.
	socketPathLimit = 103
)

// makeSocketDir makes the private directory that the socket stands in: whoever can enter it is superuser of the database.
// Its path is short because a socket's path must be, so it is not below the data directory. It is the same at each start,
// as long as nobody else has taken the name, so that pools of joined processes find the next owner's server by themselves.
//
// The caller holds the cluster's lock: what is there under the name was left by a killed server.
func makeSocketDir(dataDir string, as account) (string, error) {
	if resolved, err := filepath.EvalSymlinks(dataDir); err == nil {
		dataDir = resolved
	}
	name := fmt.Sprintf("%s%x", socketDirPrefix, sha256.Sum256([]byte(dataDir)))[:len(socketDirPrefix)+12]
	var errs []error
	for _, base := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		dir := filepath.Join(base, name)
		err := os.RemoveAll(dir)
		if err == nil {
			err = os.Mkdir(dir, 0o700)
		}
		if err != nil { // Somebody else's.
			dir, err = os.MkdirTemp(base, socketDirPrefix)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		err = checkSocketDir(dir, as)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err, os.Remove(dir))
	}
	return "", fmt.Errorf("making a directory for the socket: %w", errors.Join(errs...))
}

func checkSocketDir(dir string, as account) error {
	if path := dir + "/.s.PGSQL." + socketPort + ".lock"; len(path) > socketPathLimit {
		return fmt.Errorf("%s is too long for a socket", path)
	}
	if !as.reaches(dir) {
		return fmt.Errorf("user %s cannot enter %s", userName(as.uid), dir)
	}
	return as.own(dir)
}
