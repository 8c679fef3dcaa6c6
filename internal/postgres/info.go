package postgres

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

const infoFile = "postgres.json"

func readInfo(dataDir string) (*Info, error) {
	body, err := os.ReadFile(filepath.Join(dataDir, infoFile))
	if err != nil {
		return nil, err
	}
	var info Info
	if err := json.Unmarshal(body, &info); err != nil {
		return nil, fmt.Errorf("%s: %w", infoFile, err)
	}
	return &info, nil
}

// writeInfo replaces the file as a whole, so that a reader never sees half of it.
func writeInfo(dataDir string, info Info) error {
	body, err := json.Marshal(info)
	if err != nil {
		return err
	}
	path := filepath.Join(dataDir, infoFile)
	if err := os.WriteFile(path+".new", append(body, '\n'), 0o644); err != nil { //nolint:gosec // Holds no secret.
		return err
	}
	return os.Rename(path+".new", path)
}
