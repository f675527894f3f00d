"""What a run leaves behind: records, the sample table, and the store that writes and reads them whole. Runs without torch."""
